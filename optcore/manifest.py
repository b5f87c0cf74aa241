"""The manifest of an artifact: what is in the folder, by hash, and all that it was made from."""

import hashlib
import json
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from optcore.errors import Kind, OptError
from optcore.frozen import Frozen, digest_of
from optcore.version import ENGINE_VERSION

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
"""The signature of the whole folder, the manifest included, which therefore cannot list it."""
RECIPE = "recipe.yaml"
DOCUMENTS = ("report.json", "report.html", "README.md", RECIPE)
"""What a run says about a checkpoint; measured times differ from run to run, so the digest leaves them out."""
ALSO = "also"
"""Folder of the results beside the main one."""
VERSION = 2
"""Version 1 had no lineage, no environment, no seed, and no digest by which recipe.yaml could be checked."""
MAX_MANIFEST_bytes = 16 * 1024 * 1024
_CHUNK_bytes = 1 << 20


class ManifestUnreadable(OptError):
    """A folder without a manifest, or with one that cannot be read: it is no artifact of ours."""

    code = "manifest_unreadable"
    kind: Kind = "user_error"


class ArtifactFile(Frozen):
    """One file of the artifact."""

    path: str
    bytes: int
    sha256: str


class TrainedOn(Frozen):
    """The windows that one stage trained on."""

    stage: str
    kind: str
    """Where they came from: `text`, `chat`, `labelled`, `generated` or `random`."""
    sha256: str
    """Of all token ids and flags."""
    windows: int
    tokens: int
    """In them, each counted once however often it was trained on."""
    seed: int


class Parent(Frozen):
    """A model that went into the artifact."""

    role: str
    """`source`, `teacher`, `student`, `merged`, or `start` for what a draft began with."""
    name: str
    """The Hub repository, or the folder by its name alone."""
    revision: str = ""
    """The commit of a Hub repository."""
    sha256: str
    """Over the checkpoint's files, as `source_digest`."""
    artifact: str = ""
    """The digest in its own manifest, where it is an artifact of ours and holds what that manifest lists."""
    parents: tuple["Parent", ...] = Field(default=(), max_length=256)
    """What that one was made from."""
    parents_left_out: bool = False
    """Whether its own manifest says more of that than is repeated here."""


class Artifact(Frozen):
    """The manifest."""

    version: int = VERSION
    digest: str
    """SHA-256 over the checkpoint's files: the same for the same recipe, whatever was interrupted or measured."""
    part_of: str = ""
    """The digest of the whole artifact, where further results were published apart from this one."""
    recipe_digest: str
    """Of the recipe that ran, with its commits pinned."""
    published_recipe_digest: str = ""
    """Of the document in recipe.yaml, which has folders by their names alone and no bookkeeping of the user's."""
    source_digest: str
    """SHA-256 over the source checkpoint's files."""
    source_revision: str = ""
    """The commit of a source on the Hub."""
    data_digest: str
    """SHA-256 over the calibration text's files."""
    labelled_digest: str = ""
    """Of the labelled texts that were measured on, where they are files of the recipe's own."""
    trained_on: tuple[TrainedOn, ...] = ()
    lineage: tuple[Parent, ...] = ()
    seed: int = 0
    engine: str = ENGINE_VERSION
    environment: dict[str, str] = Field(default={})
    """Versions of the packages that computed it, and the hardware, by name."""
    files: tuple[ArtifactFile, ...]
    """Every file but the manifest itself."""

    def limited_to(self, paths: Container[str]) -> "Artifact":
        """The manifest of those of its files that are published together; itself where those are all."""
        files = tuple(file for file in self.files if file.path in paths)
        if files == self.files:
            return self
        changes = {"version": VERSION, "files": files, "digest": checkpoint_digest(files), "part_of": self.digest}
        return self.model_copy(update=changes)

    def to_json(self) -> str:
        """As it is stored."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, folder: Path) -> None:
        """Write it into the folder that it is about."""
        (folder / MANIFEST).write_text(self.to_json(), encoding="utf-8")


def read_manifest(folder: Path) -> Artifact:
    """Read the manifest of a folder, of this version or an earlier one. Raises `ManifestUnreadable`."""
    path = folder / MANIFEST
    try:
        if path.is_symlink() or not path.is_file():
            raise _unreadable(f"{folder} holds no {MANIFEST}", "give a folder that `lathe run` or `download` wrote")
        if path.stat().st_size > MAX_MANIFEST_bytes:
            raise _unreadable(f"{path} is larger than a manifest can be ({MAX_MANIFEST_bytes} bytes)", "do not use it")
        text = path.read_bytes()
        _require_known(json.loads(text), path)
        return Artifact.model_validate_json(text)
    except (OSError, ValueError, RecursionError) as error:
        said = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else str(error)[:200]
        raise _unreadable(f"{path} is not a manifest: {said}", "fetch the artifact again") from error


def checkpoint_digest(files: Iterable[ArtifactFile]) -> str:
    """SHA-256 over the paths and hashes of the checkpoint's files, in the order of the manifest."""
    own = (file for file in files if Path(file.path).name not in (MANIFEST, *DOCUMENTS))
    return digest_of([(file.path, file.sha256) for file in own])


def hash_file(path: Path, seen: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file of any size, which is never in memory as a whole; `seen` is told the bytes of each chunk."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_bytes):
            sha256.update(chunk)
            seen(len(chunk))
    return sha256.hexdigest()


def described(folder: Path, path: Path) -> ArtifactFile:
    """The row of a file below a folder."""
    return ArtifactFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=hash_file(path))


def list_files(folder: Path) -> list[ArtifactFile]:
    """Every file below a folder, hashed, in the order of the paths."""
    return [described(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]


def _require_known(document: object, path: Path) -> None:
    version = document.get("version", 1) if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        said = f"{path} is of version {version}, and this program knows none above {VERSION}"
        raise _unreadable(said, "install a newer lathe")


def _unreadable(message: str, remedy: str) -> ManifestUnreadable:
    return ManifestUnreadable(message, remedy=remedy)
