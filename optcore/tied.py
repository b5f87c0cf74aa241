"""What a checkpoint says of decoder layers that share their weights."""

from pathlib import Path
from typing import Literal

from optcore.documents import read_document
from optcore.frozen import Frozen

DESCRIPTION = "tied.json"
SIDE_FILES = (DESCRIPTION,)
NOTE = (
    "each layer has its copy of what it shares, so that any engine loads the model: it takes as many bytes as before, "
    "and every token goes through as many layers. Only the target `compact` stores what is shared once"
)


class Tied(Frozen):
    """The document beside the weights."""

    version: Literal[1] = 1
    value: Literal["mean", "first"]
    runs: tuple[tuple[int, ...], ...]
    """Decoder layers that share their weights, counted from 0."""
    tensors: tuple[tuple[str, ...], ...]
    """Names in the checkpoint of tensors that are one."""
    note: str = NOTE
    """Who can use it."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        (folder / DESCRIPTION).write_text(self.model_dump_json(indent=2) + "\n")


def load_tied(folder: Path) -> Tied | None:
    """Read the document; None for a checkpoint without one."""
    return read_document(folder / DESCRIPTION, Tied)
