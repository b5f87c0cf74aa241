"""The data folder of a server: who owns it, its secrets, and the address that others read.

Two locks. `owner.lock` is held by the process that started the server. `server.lock` is inherited by the server
itself, so it is free only when the server and all its children have ended: whoever holds it may clean up and start.
"""

import fcntl
import os
import secrets
import time
from pathlib import Path

from lathe.local.errors import FolderBusy


class DataFolder:
    """A folder that one process at a time may run a server in."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._owner: int | None = None
        self._server: int | None = None

    def claim(self) -> bool:
        """Become the owner; False when a live process is."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _open_lock(self.path / "owner.lock")
        if not _try_lock(lock):
            os.close(lock)
            return False
        self._owner = lock
        self.forget_url()
        return True

    def wait_for_orphan(self, timeout_seconds: float = 60.0) -> int:
        """Wait until a server that lost its owner has ended; the descriptor that the next server must inherit."""
        if self._server is not None:
            return self._server
        lock = _open_lock(self.path / "server.lock")
        deadline = time.monotonic() + timeout_seconds
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                os.close(lock)
                raise FolderBusy(
                    f"A server without an owner still runs in {self.path}.",
                    remedy=f"Stop it by hand; its log is in {self.path}.",
                )
            time.sleep(0.02)
        self._server = lock
        return lock

    def hand_over(self) -> None:
        """Close our copy of the server's lock once the server has its own."""
        if self._server is not None:
            os.close(self._server)
            self._server = None

    def release(self) -> None:
        """Stop being the owner."""
        self.forget_url()
        self.hand_over()
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def secret(self, name: str) -> str:
        """A random password that stays the same in this folder (0600)."""
        path = self.path / name
        if not path.exists():
            write_private(path, secrets.token_hex(24))
        return path.read_text()

    def publish_url(self, url: str) -> None:
        """Tell other processes of this user where the server is (0600)."""
        write_private(self.path / "url", url)

    def read_url(self) -> str | None:
        """What the owner published, None before that."""
        try:
            return (self.path / "url").read_text()
        except FileNotFoundError:
            return None

    def forget_url(self) -> None:
        (self.path / "url").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
