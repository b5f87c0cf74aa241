"""The files of a finished checkpoint: where each goes, and the two names that the Hub may give its content."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from optcore.references import Place, Publish
from worker.artifact import MANIFEST
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


def by_place(files: Files, publish: Publish) -> list[tuple[Place, Files]]:
    """What goes to each place, the main result last: with it, all is visible. Raises `PublishRefused`."""
    if publish.layout == "folder":
        return [(publish.place(""), files)]
    results = sorted({result_of(path) for path in files}, reverse=True)
    places = [publish.place(result) for result in results]
    if len(set(places)) < len(places):
        message = f"the branch {publish.revision} would get two results"
        raise PublishRefused(message, remedy="name another branch, or another layout", field="/publish/revision")
    return [(place, _of_result(files, result)) for place, result in zip(places, results, strict=True)]


def result_of(path: str) -> str:
    """The name of the further result that a file belongs to; empty for the main one."""
    parts = path.split("/")
    return parts[1] if path.startswith(ALSO) and len(parts) > 2 else ""


def _of_result(files: Files, result: str) -> Files:
    prefix = f"{ALSO}{result}/" if result else ""
    own = {path.removeprefix(prefix): file for path, file in files.items() if result_of(path) == result}
    if MANIFEST in own:
        own[MANIFEST] = _with_files_of(own[MANIFEST], own)
    return own


def _with_files_of(manifest: LocalFile, own: Files) -> LocalFile:
    """The main result's manifest lists the others too, which lie elsewhere now."""
    assert isinstance(manifest.content, Path)
    document = json.loads(manifest.content.read_bytes())
    listed = [row for row in document["files"] if row["path"] in own]
    if len(listed) == len(document["files"]):
        return manifest
    return _local_file(json.dumps(document | {"files": listed}, indent=2).encode() + b"\n")


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
