"""A child process that does not outlive us, writes its log to a file and can be stopped in steps."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Literal

from lathe.local import child

Identity = Literal["same", "namespace", "nobody"]
Command = Sequence[str | Path]

LOG_LIMIT_BYTES = 4_000_000


@dataclass(frozen=True)
class Manner:
    """How a program is run."""

    folder: Path
    """Its working directory."""
    identity: Identity = "same"
    """As whom; see `child.become`."""
    death_signal: Signals = SIGKILL
    """What the kernel sends it when we end."""
    keep_open: tuple[int, ...] = ()
    """File descriptors that it inherits."""


def spawn(command: Command, manner: Manner, log: Path) -> "subprocess.Popen[bytes]":
    """Start a direct child; its output is appended to `log` (0600)."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".old"))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return _in_lasting_thread(lambda: _popen(command, manner, output))
    finally:
        os.close(output)


def run(command: Command, manner: Manner, *, timeout_seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run a short program to its end, with the same identity and environment as a server."""
    return subprocess.run(
        _wrapped(command, manner),
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def stop(process: "subprocess.Popen[bytes]", steps: Sequence[tuple[Signals, float]]) -> None:
    """Send each signal in turn and give the process its seconds to end; at last kill it."""
    for signal, seconds in (*steps, (SIGKILL, 10.0)):
        if process.poll() is None:
            process.send_signal(signal)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _popen(command: Command, manner: Manner, output: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        _wrapped(command, manner),
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=manner.keep_open,
        start_new_session=True,  # a Ctrl-C in the terminal is for us; we stop our servers in order
    )


def _wrapped(command: Command, manner: Manner) -> list[str]:
    launcher = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(int(manner.death_signal))]
    return [*launcher, manner.identity, str(manner.folder), "--", *map(str, command)]


def _environment() -> dict[str, str]:
    """Nothing of ours that a server could obey or leak: no PG* options, no tokens."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


_Request = tuple[Callable[[], "subprocess.Popen[bytes]"], "Future[subprocess.Popen[bytes]]"]
_requests: "queue.SimpleQueue[_Request]" = queue.SimpleQueue()
_spawner_lock = threading.Lock()
_spawner: threading.Thread | None = None


def _in_lasting_thread(start: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    """Start from a thread that lasts as long as the process: the parent-death signal follows the spawning thread."""
    if threading.current_thread() is threading.main_thread():
        return start()
    global _spawner
    with _spawner_lock:
        if _spawner is None or not _spawner.is_alive():  # not alive: we are a fork of the process that made it
            _spawner = threading.Thread(target=_serve_requests, name="lathe-spawner", daemon=True)
            _spawner.start()
    started: Future[subprocess.Popen[bytes]] = Future()
    _requests.put((start, started))
    return started.result()


def _serve_requests() -> None:
    while True:
        start, started = _requests.get()
        try:
            started.set_result(start())
        except OSError as error:
            started.set_exception(error)
