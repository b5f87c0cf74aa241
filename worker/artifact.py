"""The engine's output folder, read back from its manifest and made durable before the database says that it exists."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from api.store.artifacts import ArtifactFile
from optcore.durable import flush
from optcore.errors import OptError
from optcore.manifest import MANIFEST, SIGNATURE, MAX_MANIFEST_bytes, described


class BadArtifact(OptError):
    """The engine said that it was done, and its output folder says otherwise."""

    code = "artifact_bad"


@dataclass(frozen=True)
class FinishedArtifact:
    """What a job may be finished with."""

    digest: str
    files: tuple[ArtifactFile, ...]


def collect(folder: Path) -> FinishedArtifact:
    """Read the manifest, check each file's place and size, and flush it to disk. Raises `BadArtifact`.

    Hashes are the engine's, which took them as it wrote; only the manifest and its signature, which cannot be listed
    in it, are hashed here.
    """
    manifest, text = _manifest(folder)
    try:
        files = [ArtifactFile(str(row["path"]), int(row["bytes"]), str(row["sha256"])) for row in manifest["files"]]
        digest = str(manifest["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact(f"{MANIFEST} is not a manifest: {error!r}") from error
    for file in files:
        _settle(folder, file)
    own = [ArtifactFile(MANIFEST, len(text), hashlib.sha256(text).hexdigest())]
    flush(folder / MANIFEST)
    path = folder / SIGNATURE
    if path.is_file() and not path.is_symlink():
        signature = ArtifactFile(**described(folder, path).model_dump())
        _settle(folder, signature)
        own.append(signature)
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent):
        flush(place)  # a file's name is on the disk when its folder is
    return FinishedArtifact(digest, (*(file for file in files if file.path not in (MANIFEST, SIGNATURE)), *own))


def _manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_MANIFEST_bytes)
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadArtifact(f"the engine left no readable {MANIFEST}: {error}") from error
    if not isinstance(document, dict):
        raise BadArtifact(f"{MANIFEST} is not a mapping")
    return document, text


def _settle(folder: Path, file: ArtifactFile) -> None:
    parts = PurePosixPath(file.path)
    path = folder / parts
    if parts.is_absolute() or ".." in parts.parts or path.is_symlink() or not path.is_file():
        raise BadArtifact(f"{MANIFEST} lists {file.path!r}, which is no plain file of the output folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadArtifact(f"{MANIFEST} lists {file.path!r}, which leaves the output folder")
    if (size := path.stat().st_size) != file.bytes:
        raise BadArtifact(f"{file.path} has {size} bytes, {MANIFEST} says {file.bytes}")
    flush(path)
