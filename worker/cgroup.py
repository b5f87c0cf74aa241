"""A control group (cgroup v2) for each engine: a limit for all its processes together, and one stroke to end them.

Only below a folder that was delegated to us. systemd marks such a folder; elsewhere the operator names it.
"""

import contextlib
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids")
EMPTY_seconds = 5.0
"""Killed processes leave their group within moments."""
_DELEGATED = "user.delegate"
"""Extended attribute that systemd sets on the group of a unit with `Delegate=yes`."""


class Cgroup:
    """A child of a delegated group. Raises OSError where it cannot be made."""

    def __init__(self, parent: Path, name: str) -> None:
        _remove_empty(parent)
        _enable(parent)
        self.folder = parent / name
        self.folder.mkdir(mode=0o700)

    @property
    def limits_memory(self) -> bool:
        """Whether the memory controller is there."""
        return (self.folder / "memory.max").exists()

    def limit(self, *, memory_bytes: int | None, processes: int) -> None:
        """Set the limits that the controllers here know."""
        wanted = {"memory.max": memory_bytes, "memory.swap.max": memory_bytes and 0, "pids.max": processes}
        for name, value in wanted.items():
            if value is not None and (self.folder / name).exists():
                (self.folder / name).write_text(str(value))

    @property
    def oom_kills(self) -> int | None:
        """Processes in it that the kernel killed for memory; None without the memory controller."""
        return oom_kills(self.folder)

    @property
    def peak_bytes(self) -> int:
        """The most that all its processes held together; 0 where the kernel does not say."""
        try:
            return int((self.folder / "memory.peak").read_text())
        except OSError:
            return 0

    def kill(self) -> None:
        """SIGKILL to every process in it."""
        (self.folder / "cgroup.kill").write_text("1")

    def remove(self) -> None:
        """Give it back. What cannot be killed keeps it, and the next engine's group tries again."""
        deadline = time.monotonic() + EMPTY_seconds
        while not _removed(self.folder):
            if time.monotonic() > deadline:
                log.error("processes in %s do not end", self.folder)
                return
            time.sleep(0.01)


def delegated(named: Path | None) -> Path | None:
    """The folder to make groups in: the named one, else the nearest around us that systemd delegated."""
    if named is not None:
        return named
    own = own_folder()
    if own is None:
        return None
    return next((folder for folder in (own, *own.parents) if _is_delegated(folder)), None)


def own_folder() -> Path | None:
    """This process's group in the hierarchy of version 2."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    root = next((line.split()[1] for line in mounts if line.split()[2] == "cgroup2"), None)
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if root is None or path is None else Path(root) / path.lstrip("/")


def oom_kills(folder: Path) -> int | None:
    """Processes of a group that the kernel killed for memory; None where nobody counts."""
    try:
        counts = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
    except OSError:
        return None
    return int(counts["oom_kill"])


def _is_delegated(folder: Path) -> bool:
    try:
        return os.getxattr(folder, _DELEGATED) == b"1"
    except OSError:
        return False


def _text(file: Path) -> str:
    """What it says; nothing where it is not there."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _enable(parent: Path) -> None:
    """Hand the controllers that are here on to the children. Impossible while the parent itself has processes."""
    here = (parent / "cgroup.controllers").read_text().split()
    wanted = [name for name in CONTROLLERS if name in here]
    if wanted:
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))


def _remove_empty(parent: Path) -> None:
    """Groups of engines whose worker was killed."""
    for folder in parent.glob("lathe-*"):
        _removed(folder)


def _removed(folder: Path) -> bool:
    """Remove a group in which no process is left."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()
