"""What a checkpoint says of weights that are indices into small tables, and the two files that it has on top."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen

DESCRIPTION = "palette.json"
PALETTES = "palette.safetensors"
SIDE_FILES = (PALETTES, DESCRIPTION)
NOTE = (
    "the weights hold the tables' values, so that any engine loads them: they take as many bytes as before, and run no "
    "faster. Only the target `compact` stores tables and indices, and no serving engine reads that: it is decoded first"
)


class PalettizedTensor(Frozen):
    """One tensor of the checkpoint: palette.safetensors has its `<name>.lut` [tables, 2^bits], ascending until they are
    trained, and `<name>.indices`, bytes: element e of the tensor, row after row, has the bits from `bits` e on, lowest
    first."""

    bits: int
    rows: int
    """Rows of the tensor, its last dimension being a row, that share a table."""
    shape: tuple[int, ...]
    relative_error: float
    """Root of the weighted squared error over that of the weights themselves: what was minimized,
    before any training."""


class Palettized(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    method: Literal["kmeans", "uniform"]
    sensitivity: Literal["inputs", "none"]
    tensors: dict[str, PalettizedTensor]
    """By name in the checkpoint."""
    note: str = NOTE
    """Who can use it."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_palettized(folder: Path) -> Palettized | None:
    """Read the document; None for a checkpoint without one."""
    return read_document(folder / DESCRIPTION, Palettized)
