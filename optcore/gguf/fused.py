"""Experts of a layer in one tensor, under the names that they have in checkpoints which hold them one by one."""

import re
from typing import NamedTuple

_FUSED = re.compile(r"(?P<folder>.*\.experts)\.(?P<leaf>gate_up_proj|down_proj)")
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Whose outputs follow each other, in all architectures that GGUF files are written for."""


class Slice(NamedTuple):
    """One expert's matrix [N, K] in a tensor of all of them."""

    stored: str
    """The tensor [experts, outputs, K]."""
    number: int
    """Of the expert."""
    rows: slice
    """The projection's own outputs."""
    shape: tuple[int, int]


def slices(stored: str, shape: tuple[int, ...]) -> dict[str, Slice]:
    """What a tensor holds, by name, such as `model.layers.0.mlp.experts.3.up_proj.weight`; nothing of one expert's."""
    if not (match := _FUSED.fullmatch(stored)) or len(shape) != 3:
        return {}
    experts, outputs, inputs = shape
    projections = _PROJECTIONS[match["leaf"]]
    height = outputs // len(projections)
    return {
        f"{match['folder']}.{number}.{projection}.weight": Slice(
            stored, number, slice(place * height, (place + 1) * height), (height, inputs)
        )
        for place, projection in enumerate(projections)
        for number in range(experts)
    }
