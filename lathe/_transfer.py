"""One file on its way from the service to a folder: where its bytes go, and whether they are the right ones."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import httpx

from lathe._retry import RetryPolicy
from lathe.errors import APIError, DigestMismatch, LatheError, UnsafePath
from lathe.models import Artifact

BLOCK_bytes = 1024 * 1024


def confine(folder: Path, name: str) -> Path:
    """The place of a listed file below a folder. Raises `UnsafePath` for one that would lie elsewhere."""
    parts = name.split("/")
    odd = "\\" in name or ":" in parts[0] or not name.isprintable() or PurePosixPath(name).is_absolute()
    root = folder.resolve()
    target = root.joinpath(*parts)
    # Resolving follows links that were put below the folder before us.
    if odd or any(part in ("", ".", "..") for part in parts) or not target.resolve().is_relative_to(root):
        raise UnsafePath(
            f"the service listed a file that leaves the folder: {name!r}",
            remedy="do not trust this service's artifacts; tell its operator",
        )
    return target


class Transfer:
    """Receives into a hidden neighbour, named by content, that becomes the file once its SHA-256 is right."""

    def __init__(self, folder: Path, artifact: Artifact) -> None:
        self.artifact = artifact
        self.target = confine(folder, artifact.path)
        if not all(letter in "0123456789abcdef" for letter in artifact.sha256) or len(artifact.sha256) != 64:
            raise DigestMismatch(f"{artifact.path} is listed with no SHA-256: {artifact.sha256[:80]!r}")
        self._draft = self.target.with_name(f".{artifact.sha256[:16]}.part")
        self._file: IO[bytes] | None = None
        self._resumed = False
        self._lost = 0
        """Attempts since the last one that came further."""
        self._furthest_bytes = 0
        self.received_bytes = 0

    def is_here(self) -> bool:
        """Whether the right file is in place already."""
        return (
            self.target.is_file()
            and self.target.stat().st_size == self.artifact.bytes
            and _sha256(self.target) == self.artifact.sha256
        )

    def offset(self) -> int:
        """Bytes that an interrupted transfer left behind, to go on from."""
        size = self._draft.stat().st_size if self._draft.is_file() and not self._draft.is_symlink() else 0
        self._resumed = size > 0
        return size

    def is_complete(self) -> bool:
        """Whether all bytes are here, and only `commit` was missed."""
        return self.artifact.bytes > 0 and self.offset() == self.artifact.bytes

    @contextmanager
    def receiving(self, response: httpx.Response) -> Iterator[None]:
        """While the body is read; what came stays when it breaks off."""
        self._open(response)
        try:
            yield
        finally:
            self._close()

    def _open(self, response: httpx.Response) -> None:
        """Write after what is there for a partial answer, from the beginning for a whole one."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        whole = response.status_code != 206
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_TRUNC if whole else os.O_APPEND)
        self._file = os.fdopen(os.open(self._draft, flags, 0o666), "ab")
        self.received_bytes = self._file.tell()

    def write(self, block: bytes) -> None:
        """Add bytes; raises `DigestMismatch` when there are more than the list promised."""
        assert self._file is not None
        self.received_bytes += len(block)
        if self.received_bytes > self.artifact.bytes:
            self.discard()
            raise self._mismatch(f"more than {self.artifact.bytes} bytes")
        self._file.write(block)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def commit(self) -> Path:
        """Check the bytes and put the file in its place. Raises `DigestMismatch`, and forgets the bytes."""
        digest = _sha256(self._draft) if self._draft.exists() else "nothing"
        if digest != self.artifact.sha256:
            self.discard()
            raise self._mismatch(digest)
        os.replace(self._draft, self.target)
        return self.target

    def retry_delay(self, error: LatheError, retry: RetryPolicy) -> float | None:
        """Seconds until another try; None to give up. What went wrong by going on is tried once from the beginning.

        Only attempts in a row that came no further are counted: a large file survives many lost connections.
        """
        if self.received_bytes > self._furthest_bytes:
            self._lost, self._furthest_bytes = 0, self.received_bytes
        out_of_range = isinstance(error, APIError) and error.status == 416
        if self._resumed and (out_of_range or isinstance(error, DigestMismatch)):
            self.discard()
            return 0.0
        delay = retry.delay(error, self._lost)
        self._lost += 1
        return delay

    def discard(self) -> None:
        """Forget what came."""
        self._draft.unlink(missing_ok=True)

    def _mismatch(self, got: str) -> DigestMismatch:
        return DigestMismatch(
            f"{self.artifact.path} came with the wrong bytes: expected SHA-256 {self.artifact.sha256}, got {got}",
            remedy="download again; if it stays, the artifact is damaged on the service",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_bytes):
            digest.update(block)
    return digest.hexdigest()
