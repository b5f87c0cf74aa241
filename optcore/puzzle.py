"""A checkpoint whose layers differ, and `puzzle.json`, which says in what."""

from typing import Literal

from optcore.frozen import Frozen

DESCRIPTION = "puzzle.json"
UNEVEN = (
    "loads everywhere and is faster nowhere: what was taken away is zeros in matrices of full shape. Plain "
    "configurations have one FFN size for all layers; vLLM and TensorRT-LLM read layers that differ from Nemotron-NAS "
    "(DeciLM) checkpoints only, which this is not, and which we have not tried"
)
EVEN = "every engine: all layers that are left have one shape"


class LayerStructure(Frozen):
    """What one decoder layer is left with."""

    was: int
    """Its number in the model before, from 0."""
    attention: bool | None
    """Whether it has its attention (or what mixes tokens in its place); None where that could not go."""
    ffn: int | None
    """Channels of its feed-forward networks that are left, all experts together; None where it has none."""
    ffn_before: int | None


class Structure(Frozen):
    """The description of a checkpoint that `puzzle` left."""

    version: Literal[1] = 1
    layers: tuple[LayerStructure, ...]
    """In the order of the checkpoint."""
    dropped: tuple[int, ...]
    """Numbers in the model before of layers of which nothing was left, and which are gone."""
    zeroed: bool
    """Whether what was taken away is still there, as zeros."""
    served_by: str
    """What runs this faster than the model before."""
