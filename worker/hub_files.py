"""The files of a finished checkpoint: where each goes, and the two names that the Hub may give its content."""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from optcore.manifest import MANIFEST, SIGNATURE, read_manifest
from optcore.references import Place, Publish
from worker.hub_errors import PublishRefused

_CHUNK_bytes = 1 << 20
ALSO = "also/"
"""Below it, a folder for each further result."""


class LocalFile(NamedTuple):
    """A file to publish."""

    content: Path | bytes
    hashes: frozenset[str]
    """SHA-256 (large files are known by it) and git's SHA-1 (small ones)."""


Files = Mapping[str, LocalFile]
"""By the path in the repository."""


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Every file by its path in the repository. Links and hidden files are not ours, and stay here."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: _local_file(path) for name, path in named.items() if not _is_hidden(name)}


Sign = Callable[[Files], bytes]
"""Gives the signature over files that go to one place."""


def by_place(files: Files, publish: Publish, sign: Sign | None = None) -> list[tuple[Place, Files]]:
    """What goes to each place, the main result last: with it, all is visible. Results that part are signed one by one,
    where there is somebody to sign them. Raises `PublishRefused`, and what `sign` raises."""
    if publish.layout == "folder":
        return [(publish.place(""), files)]
    results = sorted({result_of(path) for path in files}, reverse=True)
    places = [publish.place(result) for result in results]
    if len(set(places)) < len(places):
        message = f"the branch {publish.revision} would get two results"
        raise PublishRefused(message, remedy="name another branch, or another layout", field="/publish/revision")
    if len(results) == 1:
        return [(places[0], files)]
    return [(place, _of_result(files, result, sign)) for place, result in zip(places, results, strict=True)]


def result_of(path: str) -> str:
    """The name of the further result that a file belongs to; empty for the main one."""
    parts = path.split("/")
    return parts[1] if path.startswith(ALSO) and len(parts) > 2 else ""


def _of_result(files: Files, result: str, sign: Sign | None) -> Files:
    prefix = f"{ALSO}{result}/" if result else ""
    own = {path.removeprefix(prefix): file for path, file in files.items() if result_of(path) == result}
    if MANIFEST in own:
        own[MANIFEST] = _with_files_of(own[MANIFEST], own)
    own.pop(SIGNATURE, None)  # it is of the whole
    return own | {SIGNATURE: _local_file(sign(own))} if sign else own


def _with_files_of(manifest: LocalFile, own: Files) -> LocalFile:
    """The main result's manifest lists the others too, which lie elsewhere now."""
    assert isinstance(manifest.content, Path)
    whole = read_manifest(manifest.content.parent)
    part = whole.limited_to(own)
    return manifest if part == whole else _local_file(part.to_json().encode())


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _local_file(content: Path | bytes) -> LocalFile:
    if isinstance(content, bytes):
        return LocalFile(content, _hashes(io.BytesIO(content), len(content)))
    with content.open("rb") as file:
        return LocalFile(content, _hashes(file, content.stat().st_size))


def _hashes(stream: BinaryIO, size: int) -> frozenset[str]:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\x00" % size, usedforsecurity=False)
    while chunk := stream.read(_CHUNK_bytes):
        sha256.update(chunk)
        git.update(chunk)
    return frozenset({sha256.hexdigest(), git.hexdigest()})
