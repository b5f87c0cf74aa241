"""The bytes of each tensor of a GGUF file, and how far they may be from what they stand for."""

from typing import NamedTuple

import numpy as np
import torch

from optcore.errors import RecipeError
from optcore.export.layout_writer import EXACT, Bound
from optcore.export.raw_reader import Array
from optcore.gguf.architectures import Architecture, Config
from optcore.gguf.blocks import encode_blocks, rounding, second_scale
from optcore.gguf.layout import Entry, rotated_heads
from optcore.gguf.rotation import neighbours
from optcore.gguf.weights import Weights

BOUNDS = {"F32": EXACT, "F16": Bound(2.0**-11, 2.0**-25), "BF16": Bound(2.0**-8, 2.0**-134)}
"""Half a unit in the last place, and half of the smallest subnormal number."""
_ORDER = 2.0**-22
"""Of the same product in another order, relative."""


class Contents(NamedTuple):
    """Makes tensors of the file from those of the checkpoint, one at a time."""

    weights: Weights
    config: Config
    architecture: Architecture

    def written(self, entry: Entry) -> Array:
        """A tensor as it is stored; blocks and bfloat16 as bytes."""
        if entry.is_scale:
            return np.array([self.second(source) for source in entry.sources], np.float32)
        parts = [self._part(entry, source) for source in entry.sources]
        return np.stack(parts) if entry.has_experts else parts[0]

    def second(self, source: str) -> float:
        """What llama.cpp multiplies an NVFP4 layer's output by."""
        _, scales = self.weights.codes(source)
        return second_scale(scales)

    def expected(self, source: str) -> torch.Tensor:
        """What a tensor of the file stands for, in the order of its rows, float32."""
        value = self.weights.value(source)
        if self.architecture.norms_from_one and source.endswith("norm.weight"):
            value = value + 1.0
        return value[torch.from_numpy(order)] if (order := self._order(source)) is not None else value

    def allowed(self, entry: Entry, source: str, expected: Array) -> Array | None:
        """How far each value may be from the expected one, float64; None where it must be that very number."""
        if (scheme := self.weights.scheme(source)) is None:
            bound = BOUNDS[entry.type]
            return None if bound == EXACT else np.abs(expected.astype(np.float64)) * bound.relative + bound.absolute
        _, scales = self.weights.codes(source)
        if (per_group := rounding(scheme, scales)) is None:
            return None
        order = self._order(source)
        per_group = per_group[order] if order is not None and len(per_group) > 1 else per_group
        spread = np.repeat(per_group, expected.shape[1] // per_group.shape[1], axis=1)
        allowed: Array = spread + np.abs(expected.astype(np.float64)) * _ORDER
        return allowed

    def _part(self, entry: Entry, source: str) -> Array:
        if scheme := self.weights.scheme(source):
            rows = encode_blocks(scheme, *self.weights.codes(source))
            return rows if (order := self._order(source)) is None else rows[order]
        return _stored(entry, self.expected(source))

    def _order(self, source: str) -> Array | None:
        """The rows of the checkpoint in the order of the file."""
        heads = rotated_heads(source, self.config, self.architecture)
        return neighbours(*heads) if heads else None


def _stored(entry: Entry, value: torch.Tensor) -> Array:
    if entry.type == "F32":
        return value.contiguous().numpy()
    if entry.type == "BF16":
        return value.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    half: Array = value.half().numpy()
    if not np.isfinite(half).all():
        raise RecipeError(
            f"{entry.sources[0]} has values up to {value.abs().max().item():.3g}, and float16 ends at 65504",
            remedy="choose `plain: bf16` or `plain: f32`",
            field="/target/plain",
        )
    return half
