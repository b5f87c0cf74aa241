"""One embedded server: the walk that PostgreSQL and Valkey share."""

import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import ClassVar
from urllib.parse import urlsplit

from lathe.local.errors import FolderBusy, LocalServerError, ServerFailed
from lathe.local.folder import DataFolder
from lathe.local.process import Command, Manner, spawn, stop, tail

HOST = "127.0.0.1"  # never a name: a bare machine has no hosts file
PORT_ATTEMPTS = 5


class Server(ABC):
    """A server in a data folder: started by the first process that asks, found by the others.

    `with Postgres(folder) as url:` starts it, or joins the one that another process started, and stops what it started.
    """

    name: ClassVar[str]
    stop_steps: ClassVar[Sequence[tuple[Signals, float]]]
    """Signals to end it with, and the seconds each may take."""
    death_signal: ClassVar[Signals]
    """What it gets when its owner is killed: a clean stop."""

    def __init__(self, data_dir: Path, *, durable: bool = True, start_seconds: float = 120.0) -> None:
        self.folder = DataFolder(data_dir)
        self.durable = durable
        self.start_seconds = start_seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def log(self) -> Path:
        return self.folder.path / f"{self.name}.log"

    def start(self) -> str:
        """The URL, password inside; raises `LocalServerError`."""
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self.folder.claim():
                return self._start_own()
            url = self.folder.read_url()
            if url is not None and _answers(url):
                return url
            time.sleep(0.05)
        raise FolderBusy(
            f"Another process holds {self.folder.path}, and its {self.name} does not answer.",
            remedy=f"Stop that process, or read {self.log}.",
        )

    def stop(self) -> None:
        """Stop what we started; a server that another process started goes on."""
        if self.process is not None:
            stop(self.process, self.stop_steps)
            self.process = None
        self.folder.release()

    def revive(self) -> bool:
        """Start our server again, under the same URL, if it ended; whether that was needed."""
        if self.process is None or self.process.poll() is None:
            return False
        self._launch()
        return True

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_own(self) -> str:
        try:
            self.folder.wait_for_orphan()  # first: preparing may change the owner of files that it still writes
            self._prepare()
            return self._launch()
        except (LocalServerError, OSError, subprocess.SubprocessError, KeyboardInterrupt):
            self.stop()
            raise

    def _launch(self) -> str:
        lock = self.folder.wait_for_orphan()
        try:
            for attempt in range(PORT_ATTEMPTS):
                port = self._port if self._port and attempt == 0 else free_port()
                if self._try_port(port, lock):
                    self._port = port
                    self.folder.publish_url(self._url(port))
                    return self._url(port)
        finally:
            self.folder.hand_over()
        raise ServerFailed(f"{self.name} found no free port in {PORT_ATTEMPTS} tries.", remedy=f"Read {self.log}.")

    def _try_port(self, port: int, lock: int) -> bool:
        """Start on `port` and wait until it is ready; False when the port was taken in between."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        command, manner = self._command(port, lock)
        self.process = spawn(command, manner, self.log)
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                if b"ddress already in use" in self.log.read_bytes()[begin:]:
                    return False
                raise ServerFailed(f"{self.name} ended while starting:\n{tail(self.log)}\n", remedy=f"Read {self.log}.")
            if self._is_ready(self.process.pid, port):
                return True
            time.sleep(0.01)
        stop(self.process, self.stop_steps)
        raise ServerFailed(
            f"{self.name} was not ready after {self.start_seconds:.0f} s:\n{tail(self.log)}\n",
            remedy=f"Read {self.log}.",
        )

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data once; nothing runs in the folder now."""

    @abstractmethod
    def _command(self, port: int, lock: int) -> tuple[Command, Manner]:
        """What to run; it must inherit `lock`."""

    @abstractmethod
    def _is_ready(self, pid: int, port: int) -> bool:
        """Whether our process, not somebody else's on the same port, takes queries."""

    @abstractmethod
    def _url(self, port: int) -> str:
        """The address with its password."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with socket.create_connection((HOST, urlsplit(url).port or 0), timeout=2):
            return True
    except OSError:
        return False
