"""A sparse checkpoint: dense files with zeros in them, and `sparsity.json`, which says where and what for."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen

DESCRIPTION = "sparsity.json"
UNSTRUCTURED = "unstructured"
_SEMI_STRUCTURED = (
    "torch.sparse semi-structured and cuSPARSELt on NVIDIA Ampere or newer; "
    "no serving engine loads it compressed any more: stored dense"
)
QUANTIZED = (
    "nothing that was tested here: zeros are codes among the others, and no serving engine loads sparse quantized "
    "weights any more; their kernels multiply by zeros as by any weight"
)
"""What is true of a sparse checkpoint that was quantized, whatever its pattern and format."""
_NOTHING = "nothing on GPUs; sparse CPU runtimes after conversion"


class SparseTensor(Frozen):
    """One tensor of the checkpoint that was sparsified."""

    pattern: str
    """`N:M`: at most N of every M inputs in a row of a weight are not zero. `unstructured`: anywhere."""
    nonzero: int
    """Counted in the values as they are stored."""
    total: int


class Sparsity(Frozen):
    """The description of a sparse checkpoint. It is stored dense: it takes as many bytes as before."""

    version: Literal[1] = 1
    method: str
    tensors: dict[str, SparseTensor]
    """By name in the dense checkpoint; of one that was quantized since, what its codes stand for is counted."""
    accelerated_by: str
    """What computes faster with these zeros, as far as anything does."""

    @property
    def nonzero(self) -> int:
        """Weights of the sparsified tensors that are left."""
        return sum(tensor.nonzero for tensor in self.tensors.values())

    @property
    def total(self) -> int:
        """All weights of the sparsified tensors."""
        return sum(tensor.total for tensor in self.tensors.values())

    @property
    def share(self) -> float:
        """Share of the sparsified tensors' weights that is zero."""
        return 1 - self.nonzero / self.total if self.total else 0.0

    def save(self, folder: Path) -> None:
        """Write the description into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_sparsity(folder: Path) -> Sparsity | None:
    """Read the description; None for a checkpoint that is not sparse. Raises `BadCheckpoint` for another document."""
    return read_document(folder / DESCRIPTION, Sparsity)


def accelerated_by(pattern: str) -> str:
    """What runs a pattern faster: GPUs know 2:4 alone (in groups of four, whatever is stricter fits too)."""
    return _SEMI_STRUCTURED if pattern in ("2:4", "1:4", "1:2") else _NOTHING
