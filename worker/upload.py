"""The output of an attempt on its way into a bucket: sent while the lease is held, and again where it broke off.

A server that is away delays the end of the job. One that stays away costs the attempt, and nothing that the engine
did: its stages are in the work folder.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from api.errors import StoreAway
from api.files import Bucket
from api.files.objects import BLOCK_bytes
from api.store.artifacts import ArtifactFile
from optcore.errors import Kind, OptError
from worker.artifact import BadArtifact

log = logging.getLogger(__name__)

FIRST_PAUSE_seconds = 0.5
LAST_PAUSE_seconds = 30.0

Wait = Callable[[float], None]
"""Sleeps so many seconds, and raises when there is a reason to stop."""


class StoreUnreachable(OptError):
    """The artifact store did not take or give a file, for longer than we wait."""

    code = "artifact_store_away"
    kind: Kind = "infrastructure"
    retryable = True


class Upload:
    """Sends the files of one attempt. What the bucket has already, by size and SHA-256, is not sent again."""

    def __init__(self, bucket: Bucket, prefix: str, *, patience_seconds: float, wait: Wait) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._patience_seconds = patience_seconds
        self._wait = wait

    def run(self, folder: Path, files: Sequence[ArtifactFile]) -> None:
        """Return when all files are there. Raises `StoreUnreachable`, `BadArtifact`, and what `wait` raises."""
        for file in files:
            self._insist(folder, file)

    def _insist(self, folder: Path, file: ArtifactFile) -> None:
        began, pause_seconds = time.monotonic(), FIRST_PAUSE_seconds
        while True:
            self._wait(0)
            try:
                return self._send(folder, file)
            except StoreAway as error:
                if time.monotonic() - began > self._patience_seconds:
                    raise unreachable(error) from None
                log.warning("%s is not in the store yet: %s", file.path, error.message)
            self._wait(pause_seconds)
            pause_seconds = min(pause_seconds * 2, LAST_PAUSE_seconds)

    def _send(self, folder: Path, file: ArtifactFile) -> None:
        name = f"{self._prefix}/{file.path}"
        if self._bucket.holds(name, file.bytes, file.sha256):
            return log.info("%s is in the store", file.path)
        self._bucket.send(name, self._blocks(folder, file), file.bytes, file.sha256)
        log.info("%s was sent: %d bytes", file.path, file.bytes)

    def _blocks(self, folder: Path, file: ArtifactFile) -> Iterator[bytes]:
        """The file, hashed on its way. One that is not what the manifest says breaks the upload off before its end."""
        sha256 = hashlib.sha256()
        try:
            with (folder / file.path).open("rb") as stream:
                while block := stream.read(BLOCK_bytes):
                    self._wait(0)
                    sha256.update(block)
                    yield block
        except OSError as error:
            raise BadArtifact(f"{file.path} cannot be read: {error.strerror}") from error
        if sha256.hexdigest() != file.sha256:
            raise BadArtifact(f"{file.path} is not what the engine wrote: SHA-256 {sha256.hexdigest()}")


def unreachable(error: StoreAway) -> StoreUnreachable:
    """The same for the job's owner: what the engine did is not lost."""
    return StoreUnreachable(error.message, remedy="try again later: finished stages are kept")
