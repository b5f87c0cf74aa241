"""As whom PostgreSQL runs. It refuses root, so root has three ways; the first that works on this machine is taken.

1. A user namespace without a mapping: the server believes that it is nobody, its files stay root's, no mode is changed.
2. The user `nobody`, when the programs and the data lie where that user can go.
3. The same with a copy of the programs, and if need be the data, below `/var/lib/lathe`.

No folder above ours is ever opened up.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lathe.local.binaries import Binaries
from lathe.local.child import NOBODY
from lathe.local.errors import ServerFailed
from lathe.local.process import Identity, Manner, run

SHARED_STATE = Path("/var/lib/lathe")


@dataclass(frozen=True)
class Berth:
    """What runs, as whom, and in which folder of its own."""

    binaries: Binaries
    identity: Identity
    home: Path

    def settle(self) -> None:
        """Make `home` and give it, with all that is in it, to the identity."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid() != 0:
            return
        owner = NOBODY if self.identity == "nobody" else 0
        if self.home.stat().st_uid != owner:
            _give(self.home, owner)
        if self.identity == "nobody":
            self.home.parent.chmod(0o711)  # ours alone; others may pass through, not look

    def works(self) -> bool:
        """Whether the server program runs as this identity inside `home`."""
        manner = Manner(folder=self.home, identity=self.identity)
        try:
            return run([self.binaries.server_path, "--version"], manner, timeout_seconds=20).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def choose(binaries: Binaries, home: Path, *, root: bool) -> Berth:
    """The first way that works here, settled; raises `ServerFailed` when root has none."""
    ways = _root_ways(binaries, home) if root else iter([Berth(binaries, "same", home)])
    reason = "each way was tried"
    try:
        for berth in ways:
            berth.settle()
            if berth.works():
                return berth
    except OSError as error:
        reason = str(error)
    raise ServerFailed(
        f"PostgreSQL could not be run with its files in {home}: {reason}.",
        remedy="Run as another user than root, or set LATHE_DATABASE_URL.",
    )


def _root_ways(binaries: Binaries, home: Path) -> Iterator[Berth]:
    yield Berth(binaries, "namespace", home)
    yield Berth(binaries, "nobody", home)
    copy = _copy_out(binaries)
    yield Berth(copy, "nobody", home)
    if (home / "db").exists():
        raise ServerFailed(
            f"The database in {home} was made where user namespaces were allowed, and they no longer are.",
            remedy="Allow them, or set LATHE_DATABASE_URL.",
        )
    yield Berth(copy, "nobody", SHARED_STATE / hashlib.sha256(os.fsencode(home)).hexdigest()[:16] / "postgres")


def _copy_out(binaries: Binaries) -> Binaries:
    """The programs below a folder that everybody may enter; as they are when they come from the system."""
    if not binaries.bundle:
        return binaries
    stamp = f"{binaries.server_path}:{binaries.server_path.stat().st_mtime_ns}"
    target = SHARED_STATE / f"programs-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    if not target.exists():
        SHARED_STATE.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        for source in filter(Path.exists, binaries.bundle):
            shutil.copytree(source, draft / source.name)
        for folder in (SHARED_STATE, draft):
            folder.chmod(0o755)
        draft.rename(target)
    return binaries.moved_to(target)


def _give(tree: Path, owner: int) -> None:
    for folder, _, files in os.walk(tree):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, owner, owner, follow_symlinks=False)
