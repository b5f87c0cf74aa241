"""What a checkpoint whose weights are products of factors says of itself, and the two files that it has on top."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen

DESCRIPTION = "low_rank.json"
FACTORS = "factors.safetensors"
SIDE_FILES = (FACTORS, DESCRIPTION)
_NOTE = (
    "model.safetensors holds the products of the factors, so that any engine loads it: it takes as many bytes as "
    "before, and runs no faster. No serving engine runs the factored form; only factors.safetensors is smaller. "
    "A weight is left @ right."
)


class FactoredTensor(Frozen):
    """One linear layer's weight."""

    rank: int
    shape: tuple[int, int]
    """Outputs and inputs."""
    parameters_before: int
    parameters_after: int
    """Of both factors: rank * (outputs + inputs)."""


class Factored(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    method: Literal["svd", "whitened"]
    allocation: Literal["uniform", "global"]
    keep: float
    """The share that was asked for."""
    kept: float
    """The share that is left of the linears that were considered, those that stayed whole counted in."""
    parameters_before: int
    """Of the same linears."""
    parameters_after: int
    tensors: dict[str, FactoredTensor]
    """By name of the weight in the checkpoint; its factors are `<module>.left` [outputs, rank] and `<module>.right`
    [rank, inputs] in factors.safetensors."""
    whole: tuple[str, ...] = ()
    """Considered, and left as they were: factors of the rank that they need would not be smaller."""
    note: str = _NOTE
    """Who can use it."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_factored(folder: Path) -> Factored | None:
    """Read the document; None for a checkpoint without one."""
    return read_document(folder / DESCRIPTION, Factored)
