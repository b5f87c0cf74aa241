"""Whether a folder still is the artifact that its manifest describes.

Nothing but the manifest is believed, and what it says of paths is not: a file is opened only where it lies in the
folder itself, behind no link. Hashes show damage and careless edits. Who can write the folder can also write a manifest
that fits; only a signature (`optcore.signing`) shows that.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from optcore.errors import RecipeError
from optcore.frozen import Frozen, digest_of
from optcore.manifest import (
    ALSO,
    MANIFEST,
    RECIPE,
    SIGNATURE,
    Artifact,
    ArtifactFile,
    ManifestUnreadable,
    checkpoint_digest,
    hash_file,
    read_manifest,
)
from optcore.recipe import MAX_RECIPE_bytes
from optcore.yaml_text import read_document

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
FindingKind = Literal["missing", "changed", "extra", "unsafe", "recipe", "manifest", "signature"]
LEFT_BY_DOWNLOADS = (".git", ".gitattributes", ".cache")
"""What git and the Hub's client keep at the top of a copy; no engine reads it."""


class Finding(Frozen):
    """One way in which a folder is not what it says."""

    kind: FindingKind
    path: str = ""
    """Relative to the folder; empty where it is about all of it."""
    message: str


def verify(folder: Path, progress: Progress = lambda done, total: None) -> tuple[Finding, ...]:
    """Compare every file with the manifest, and the manifest with itself and the recipe; nothing is found in a folder
    that is as it was made. Reads all files once. Raises `ManifestUnreadable` for a folder that is no artifact."""
    artifact = read_manifest(folder)
    found = [*_of_files(folder, artifact, progress), *_extra(folder, artifact), *_of_manifest(folder, artifact, "")]
    doubted, rows = {each.path for each in found}, {file.path: file for file in artifact.files}
    for path in rows:
        parts = PurePosixPath(path).parts
        if len(parts) == 3 and parts[0] == ALSO and parts[2] == MANIFEST and path not in doubted:
            found += _of_result(folder, rows, f"{ALSO}/{parts[1]}/")
    return tuple(found)


def _of_files(folder: Path, artifact: Artifact, progress: Progress) -> Iterator[Finding]:
    root, seen = folder.resolve(), set[str]()
    done, total = 0, sum(max(file.bytes, 0) for file in artifact.files)
    for file in artifact.files:
        if file.path in seen:
            yield Finding(kind="manifest", path=file.path, message="is listed twice")
            continue
        seen.add(file.path)
        before = done

        def tell(count: int) -> None:
            nonlocal done
            done += count
            progress(min(done, total), total)

        if found := _of_file(root, file, tell):
            yield found
        done = before + max(file.bytes, 0)
        progress(done, total)


def _of_file(root: Path, file: ArtifactFile, tell: Callable[[int], None]) -> Finding | None:
    def finding(kind: FindingKind, message: str) -> Finding:
        return Finding(kind=kind, path=file.path, message=message)

    if not _stays_inside(file.path):
        return finding("unsafe", "is no path of a file below the folder; it was not opened")
    path = root / file.path
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or path.resolve() != path:
            return finding("unsafe", "is a symbolic link, or lies behind one; it was not opened")
        if not stat.S_ISREG(status.st_mode):
            return finding("unsafe", "is no plain file; it was not opened")
        if status.st_size != file.bytes:
            return finding("changed", f"has {status.st_size} bytes, the manifest says {file.bytes}")
        sha256 = hash_file(path, tell)
    except (FileNotFoundError, NotADirectoryError):
        return finding("missing", "is listed in the manifest, and is not there")
    except OSError as error:
        return finding("missing", f"cannot be read: {error.strerror}")
    return None if sha256 == file.sha256 else finding("changed", f"has SHA-256 {sha256}, the manifest says otherwise")


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    is_normal = bool(path) and "\x00" not in path and str(pure) == path and path != "."
    return is_normal and not pure.is_absolute() and ".." not in pure.parts and path not in (MANIFEST, SIGNATURE)


def _extra(folder: Path, artifact: Artifact) -> Iterator[Finding]:
    known = {file.path for file in artifact.files} | {MANIFEST, SIGNATURE}
    for at, folders, files in os.walk(folder):
        here = Path(at)
        if here == folder:
            folders[:] = [name for name in folders if name not in LEFT_BY_DOWNLOADS]
            files = [name for name in files if name not in LEFT_BY_DOWNLOADS]
        linked = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*files, *linked]):
            path = (here / name).relative_to(folder).as_posix()
            if path not in known:
                yield Finding(kind="extra", path=path, message="is not in the manifest")


def _of_manifest(folder: Path, artifact: Artifact, below: str) -> Iterator[Finding]:
    """What a manifest says of itself, and the recipe beside it; `below` is the prefix of a further result's paths."""
    if artifact.digest != checkpoint_digest(artifact.files):
        yield Finding(kind="manifest", path=below + MANIFEST, message="its digest is not that of the files it lists")
    path = folder / RECIPE
    if not artifact.published_recipe_digest or path.is_symlink() or not path.is_file():
        return  # of an earlier version, or found already: every artifact lists its recipe
    try:
        with path.open("rb") as file:
            document = read_document(file.read(MAX_RECIPE_bytes + 1).decode())
        digest = digest_of(document)  # of the document: a later version's recipe may have more fields than this one
    except (OSError, ValueError, TypeError, RecipeError) as error:
        yield Finding(kind="recipe", path=below + RECIPE, message=f"cannot be read: {error}"[:300])
        return
    if digest != artifact.published_recipe_digest:
        yield Finding(kind="recipe", path=below + RECIPE, message="is not the recipe that the manifest was written for")


def _of_result(folder: Path, rows: Mapping[str, ArtifactFile], below: str) -> Iterator[Finding]:
    """A further result has a manifest of its own, which must say of its files what the whole one's rows say."""
    try:
        own = read_manifest(folder / below)
    except ManifestUnreadable as error:
        yield Finding(kind="manifest", path=below + MANIFEST, message=error.message)
        return
    for file in own.files:
        row = rows.get(below + file.path)
        if row is None or (row.bytes, row.sha256) != (file.bytes, file.sha256):
            said = f"says something else of {file.path} than {MANIFEST} at the top"
            yield Finding(kind="manifest", path=below + MANIFEST, message=said)
    yield from _of_manifest(folder / below, own, below)
