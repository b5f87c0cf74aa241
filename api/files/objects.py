"""What a folder and a bucket have in common: named files, read in ranges."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from api.errors import StoreAway

log = logging.getLogger(__name__)

BLOCK_bytes = 8 * 1024 * 1024
"""Memory that one reader takes, and what is asked for at one time: a slow reader holds no connection meanwhile."""
_WHY = re.compile(r"(?<=status code: )\d{3}|(?<=<Code>)\w+(?=</Code>)|(?<=kind: )(?:Connect|Timeout)|BadScheme")


def name_of(job_id: str, epoch: int, path: str = "") -> str:
    """The name of a file, or of the folder of an attempt."""
    return f"{job_id}/{epoch}/{path}" if path else f"{job_id}/{epoch}"


class Objects:
    """Files by name. Every method raises `StoreAway` when the store does not answer, or refuses."""

    def __init__(self, backend: ObjectStore) -> None:
        self._backend = backend

    def size_bytes(self, name: str) -> int | None:
        """Size of a file; None when there is none."""
        with answering():
            try:
                return int(obstore.head(self._backend, name)["size"])
            except (FileNotFoundError, ValueError):  # a name that cannot be one is absent too
                return None

    def read(self, name: str, begin: int, end: int) -> Iterator[bytes]:
        """The bytes from `begin` to before `end`, which must lie within the file, a block at a time."""
        for start in range(begin, end, BLOCK_bytes):
            with answering():
                block = obstore.get_range(self._backend, name, start=start, end=min(start + BLOCK_bytes, end))
            yield bytes(block)


@contextmanager
def answering() -> Iterator[None]:
    """Turn the library's errors into ours. Their text is not passed on: it can quote an access key."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        why = ", ".join(dict.fromkeys((type(error).__name__, *_WHY.findall(str(error)))))
        log.warning("artifact store: %s", why)
        message = f"the artifact store does not answer as it should ({why})"
        raise StoreAway(message, remedy="try again; if it stays, its operator has to look at it") from None
