"""What a checkpoint says of tables whose numbers share storage by a hash, and the two files that it has on top."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen

DESCRIPTION = "hashed.json"
BUCKETS = "hashed.safetensors"
SIDE_FILES = (BUCKETS, DESCRIPTION)
NOTE = (
    "the weights hold every number at its place, so that any engine loads them: they take as many bytes as before. "
    "Only the target `compact` stores the buckets alone. No kernel looks numbers up by a hash"
)


class HashedTensor(Frozen):
    """One tensor of the checkpoint: hashed.safetensors has its `<name>.buckets`."""

    shape: tuple[int, int]
    buckets: int
    seed: int
    hash: Literal["murmur3", "modulo"]
    """Which number of the buckets an element is: `optcore/algorithms/hashing.py` says how."""
    relative_error: float
    """Root of the squared error, rows weighted as in the fit, over that of the table itself, before any training."""


class Hashed(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    tensors: dict[str, HashedTensor]
    """By name in the checkpoint."""
    note: str = NOTE
    """Who can use it."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_hashed(folder: Path) -> Hashed | None:
    """Read the document; None for a checkpoint without one."""
    return read_document(folder / DESCRIPTION, Hashed)
