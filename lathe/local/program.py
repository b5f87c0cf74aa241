"""A long-running program of ours, kept alive: started again when it ends, ever more slowly when it keeps ending."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lathe.local.process import LOG_LIMIT_BYTES, tail
from lathe.local.tether import tethered

FIRST_PAUSE_seconds = 0.5
LAST_PAUSE_seconds = 30.0
STEADY_seconds = 30.0
"""After so long a life the next end is a first one again."""


@dataclass
class Program:
    """Start, look at and stop it from one thread: the kernel ends it when that thread ends."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    """Its working directory."""
    log: Path
    ready_word: str = ""
    """What its log says once it can work."""
    grace_seconds: float = 10.0
    """Between asking it to end and killing it."""
    ends: int = field(default=0, init=False)
    """How often it was found ended."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _log_begin: int = field(default=0, init=False)
    _started_at: float = field(default=0.0, init=False)
    _pause_seconds: float = field(default=FIRST_PAUSE_seconds, init=False)
    _due_at: float = field(default=0.0, init=False)

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    def is_ready(self) -> bool:
        """Whether it runs and has said so."""
        return self.pid is not None and self.ready_word.encode() in self._said()

    def last_words(self) -> str:
        """The end of its log."""
        return tail(self.log)

    def start(self) -> None:
        """Start it now; its output goes to `log` (0600)."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".old"))
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._log_begin = os.fstat(output).st_size
            self._started_at = time.monotonic()
            self._process = subprocess.Popen(
                tethered(self.command, folder=self.folder, death_signal=signal.SIGKILL),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for us; we end our programs in order
            )
        finally:
            os.close(output)

    def revive(self) -> bool:
        """Start it again if it ended and its pause is over; True when this look found it ended."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self.ends += 1
            now = time.monotonic()
            steady = now - self._started_at > STEADY_seconds
            self._pause_seconds = FIRST_PAUSE_seconds if steady else min(self._pause_seconds * 2, LAST_PAUSE_seconds)
            self._due_at = now + self._pause_seconds
            return True
        if self._process is None and time.monotonic() >= self._due_at:
            self.start()
        return False

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for its end, for the grace period at most; then kill it and its process group."""
        if self._process is None:
            return
        try:
            self._process.wait(self.grace_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _said(self) -> bytes:
        with self.log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read()
