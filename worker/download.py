"""The files of a finished job as a folder of this host, each checked against its registered SHA-256."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from api.errors import StoreAway
from api.files import Bucket, Folder, name_of
from api.lifecycle import PublishClaim
from api.store import artifacts
from api.store.models import Artifact
from worker.artifact import BadArtifact
from worker.context import Context
from worker.upload import unreachable


@contextmanager
def at_hand(claim: PublishClaim, context: Context) -> Iterator[Path]:
    """The artifact of a push, for the time of it. Raises `BadArtifact`, `StoreUnreachable` and `OSError`."""
    with context.sessions() as session:
        files = artifacts.of(session, claim.job_id)
    match context.store:
        case Folder() as store:
            yield _checked(store.root / name_of(claim.job_id, claim.artifact_epoch), files)
        case Bucket() as store:
            staging = context.staging
            staging.sweep()
            place = staging.place(claim.job_id, claim.epoch, "push")
            try:
                _download(store, claim, files, place)
                yield place
            finally:
                staging.clear(place)


def _checked(folder: Path, files: Sequence[Artifact]) -> Path:
    for file in files:
        with (folder / file.path).open("rb") as stream:
            _require(file, hashlib.file_digest(stream, "sha256").hexdigest())
    return folder


def _download(store: Bucket, claim: PublishClaim, files: Sequence[Artifact], place: Path) -> None:
    for file in files:
        target = place / file.path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sha256 = hashlib.sha256()
        with target.open("wb") as stream:
            for block in _read(store, name_of(claim.job_id, claim.artifact_epoch, file.path), file.bytes):
                sha256.update(block)
                stream.write(block)
        _require(file, sha256.hexdigest())


def _read(store: Bucket, name: str, size_bytes: int) -> Iterator[bytes]:
    try:
        if store.size_bytes(name) != size_bytes:
            raise BadArtifact(f"{name} is no longer in the store", remedy="run the job again")
        yield from store.read(name, 0, size_bytes)
    except StoreAway as error:
        raise unreachable(error) from None


def _require(file: Artifact, sha256: str) -> None:
    if sha256 != file.sha256:
        raise BadArtifact(f"{file.path} has another SHA-256 than it was stored with", remedy="run the job again")
