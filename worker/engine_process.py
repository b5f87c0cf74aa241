"""One engine on a leash, in a session of its own: its events and its end come to an inbox, signals go to its group."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from optcore.events import AnyEvent, parse_event
from worker import leash
from worker.confinement import Confinement
from worker.engine_log import LINE_LIMIT, EngineLog

EVENT_LIMIT = 1024 * 1024  # bytes
PIPES_CLOSE_seconds = 5.0


@dataclass(frozen=True)
class Said:
    """The engine printed an event."""

    event: AnyEvent


@dataclass(frozen=True)
class Exited:
    """The engine ended, and nothing of it is left."""

    returncode: int
    """Negative: the signal that ended it."""
    peak_memory_bytes: int = 0
    """Of its largest process."""


Inbox = queue.SimpleQueue[object]


class EngineProcess:
    """A running engine. Make it on the main thread: the parent-death signal follows the thread that forked."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        engine_log: EngineLog,
        inbox: Inbox,
        confinement: Confinement,
    ) -> None:
        self._confinement = confinement
        self._log = engine_log
        self._inbox = inbox
        self._gone = False
        self._signalling = threading.Lock()
        tied = [sys.executable, "-I", "-S", str(Path(leash.__file__)), str(os.getpid()), confinement.terms]
        self._process = subprocess.Popen(
            [*tied, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=confinement.folder,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = (
            _thread("engine-events", self._read_events, self._process.stdout),
            _thread("engine-log", self._read_log, self._process.stderr),
        )
        self._waiter = _thread("engine-wait", self._wait)

    @property
    def pid(self) -> int:
        """Process id of the leash, and id of the session and the process group."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask the whole group to stop."""
        self._signal(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Ask every process to write into the log where it is; one that does not know how ends."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Have the leash end the whole tree, ranks in sessions of their own included."""
        with self._signalling:
            if not self._gone:
                os.kill(self.pid, signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        with self._signalling:
            if not self._gone:
                os.killpg(self.pid, number)

    def _wait(self) -> None:
        # Dead but not yet reaped, its id still names our group and no other: what it left behind can be killed safely.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._signalling:
            os.killpg(self.pid, signal.SIGKILL)
            self._confinement.kill()
            _, status, usage = os.wait4(self.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._gone = True
        for reader in self._readers:
            reader.join(PIPES_CLOSE_seconds)
        self._inbox.put(Exited(self._process.returncode, usage.ru_maxrss * 1024))

    def _read_events(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(lambda: stream.readline(EVENT_LIMIT), b""):
                try:
                    # PostgreSQL's text has no NUL, and one bad character must not hold up the events after it.
                    self._inbox.put(Said(parse_event(line.replace(rb"\u0000", rb"\ufffd"))))
                except ValidationError:
                    self._log.write(b"not an event: " + line)

    def _read_log(self, stream: IO[bytes]) -> None:
        with stream:
            for line in iter(lambda: stream.readline(LINE_LIMIT), b""):
                self._log.write(line)


def _thread(name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(name=name, target=target, args=arguments, daemon=True)
    thread.start()
    return thread
