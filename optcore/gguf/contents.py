"""The bytes of each tensor of a GGUF file, and how far they may be from what they stand for."""

from collections.abc import Iterator
from math import prod
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
_VALUES = 2**18
"""In a chunk: a float64 copy of it has 2 MiB, and one of a table of tokens would have gigabytes."""


class Chunk(NamedTuple):
    """Some rows of a tensor, in the order of the file; of a vector some values."""

    rows: slice
    expected: torch.Tensor
    """What they stand for, float32."""
    allowed: Array | None
    """How far each value may be from that, float64; None where it must be that very number."""


class Contents(NamedTuple):
    """Makes tensors of the file from those of the checkpoint, one at a time."""

    weights: Weights
    config: Config
    architecture: Architecture

    def written(self, entry: Entry) -> Array:
        """A tensor as it is stored: float32 scales, or bytes, uint8 [experts or 1, bytes of one]."""
        if entry.is_scale:
            return np.array([self.second(source) for source in entry.sources], np.float32)
        octets = np.empty((len(entry.sources), entry.nbytes // len(entry.sources)), np.uint8)
        for own, source in zip(octets, entry.sources, strict=True):
            self._fill(own, entry, source)
        return octets

    def second(self, source: str) -> float:
        """What llama.cpp multiplies an NVFP4 layer's output by."""
        _, scales = self.weights.codes(source)
        return second_scale(scales)

    def chunks(self, entry: Entry, source: str) -> Iterator[Chunk]:
        """All of a tensor from the first row to the last."""
        value, order = self.weights.value(source), self._order(source)
        is_from_one = self.architecture.norms_from_one and source.endswith("norm.weight")
        rounded_NG = self._rounding(source)
        step = max(1, _VALUES // prod(value.shape[1:]))
        for start in range(0, len(value), step):
            rows = slice(start, start + step)
            own = value[rows] if order is None else value[torch.from_numpy(order[rows])]
            expected = own.float() + 1.0 if is_from_one else own.float()
            own_NG = rounded_NG[rows] if rounded_NG is not None and len(rounded_NG) > 1 else rounded_NG
            yield Chunk(rows, expected, _allowed(entry, expected.numpy(), own_NG))

    def _fill(self, octets: Array, entry: Entry, source: str) -> None:
        """Set a tensor's bytes, or an expert's."""
        if scheme := self.weights.scheme(source):
            rows = encode_blocks(scheme, *self.weights.codes(source))
            octets[:] = (rows if (order := self._order(source)) is None else rows[order]).reshape(-1)
            return
        end = 0
        for chunk in self.chunks(entry, source):
            stored = _stored(entry, chunk.expected).reshape(-1).view(np.uint8)
            octets[end : (end := end + len(stored))] = stored

    def _rounding(self, source: str) -> Array | None:
        """What rounding of its scales does to the groups of a quantized weight, its rows in the order of the file."""
        if (scheme := self.weights.scheme(source)) is None:
            return None
        _, scales = self.weights.codes(source)
        rounded_NG, order = rounding(scheme, scales), self._order(source)
        return rounded_NG if rounded_NG is None or order is None or len(rounded_NG) == 1 else rounded_NG[order]

    def _order(self, source: str) -> Array | None:
        """The rows of the checkpoint in the order of the file."""
        heads = rotated_heads(source, self.config, self.architecture)
        return neighbours(*heads) if heads else None


def _allowed(entry: Entry, expected: Array, rounded_NG: Array | None) -> Array | None:
    if (bound := BOUNDS.get(entry.type)) is not None:
        return None if bound == EXACT else np.abs(expected.astype(np.float64)) * bound.relative + bound.absolute
    if rounded_NG is None:
        return None
    spread = np.repeat(rounded_NG, expected.shape[1] // rounded_NG.shape[1], axis=1)
    allowed: Array = spread + np.abs(expected.astype(np.float64)) * _ORDER
    return allowed


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
