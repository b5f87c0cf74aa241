"""The files of a finished checkpoint, by the two names that the Hub may give their content."""

import hashlib
from pathlib import Path
from typing import NamedTuple

_CHUNK_bytes = 1 << 20


class LocalFile(NamedTuple):
    """A file to publish."""

    path: Path
    hashes: frozenset[str]
    """SHA-256 (large files are known by it) and git's SHA-1 (small ones)."""


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Every file by its path in the repository. Links and hidden files are not ours, and stay here."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: LocalFile(path, _hashes(path)) for name, path in named.items() if not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _hashes(path: Path) -> frozenset[str]:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\x00" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_bytes):
            sha256.update(chunk)
            git.update(chunk)
    return frozenset({sha256.hexdigest(), git.hexdigest()})
