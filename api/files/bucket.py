"""Artifacts in a bucket of S3, or of a server that speaks its protocol.

Credentials, region and endpoint are those of the usual AWS_* variables, and never pass through our settings.
"""

from collections.abc import Iterable
from datetime import timedelta

import obstore
from obstore.store import S3Store

from api.files.objects import BLOCK_bytes, Objects, answering

MAX_PARTS = 9_000
"""S3 takes ten thousand."""
_SHA256 = "sha256"
_PARTS_AT_A_TIME = 4


class Bucket(Objects):
    """`s3://<bucket>/<prefix>/<job_id>/<epoch>/<path>`."""

    def __init__(self, url: str, *, allow_http: bool = False) -> None:
        super().__init__(
            S3Store.from_url(
                url,
                # A short outage is bridged here; who can wait for a longer one tries again, and can be told to stop.
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
                client_options={
                    "allow_http": allow_http,
                    "connect_timeout": timedelta(seconds=5),
                    "timeout": timedelta(seconds=60),
                },
            )
        )

    def holds(self, name: str, size_bytes: int, sha256: str) -> bool:
        """Whether a file was sent, whole and with this content."""
        with answering():
            try:
                found = obstore.get(self._backend, name, options={"head": True})
            except FileNotFoundError:
                return False
            return found.meta["size"] == size_bytes and found.attributes.get(_SHA256) == sha256

    def send(self, name: str, blocks: Iterable[bytes], size_bytes: int, sha256: str) -> None:
        """Write a file, in parts where it is large; it is there when all of it is. What `blocks` raises, this does."""
        with answering():
            obstore.put(
                self._backend,
                name,
                blocks,
                attributes={_SHA256: sha256},
                use_multipart=size_bytes > BLOCK_bytes,
                chunk_size=max(BLOCK_bytes, -(-size_bytes // MAX_PARTS)),
                max_concurrency=_PARTS_AT_A_TIME,
            )

    def remove(self, prefix: str) -> None:
        """Remove all files whose names begin with the folder `prefix`. None is as good."""
        with answering():
            for found in obstore.list(self._backend, prefix, chunk_size=1000):
                obstore.delete(self._backend, [each["path"] for each in found])
