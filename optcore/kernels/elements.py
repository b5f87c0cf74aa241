"""Pieces that fake quantization shares inside kernels: rounding to a format's grid, and writing a result.

Kernels know grids by the constants of `numbers.GRIDS`.
"""

from __future__ import annotations  # the constants are annotated with a module that is not imported

from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.algorithms.rounding import grid_of
from optcore.kernels.jit import device
from optcore.kernels.numbers import GRIDS, round_bf16, round_e2m1, round_e4m3, round_int
from optcore.schemes import QuantArgs

if TYPE_CHECKING:
    import triton.language as tl

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types that kernels read and write."""


class Elements(NamedTuple):
    """A grid as kernels are told it."""

    grid: int
    low: float
    high: float


def elements_of(args: QuantArgs) -> Elements | None:
    """The grid of a format, or None where kernels know none."""
    name = {"int": "int", "uint": "int"}.get(args.type) or {8: "e4m3", 4: "e2m1"}.get(args.bits)
    if args.type not in ("int", "uint", "float") or name is None:
        return None
    return Elements(GRIDS[name], *map(float, grid_of(args).ends))


# mypy: disable-error-code="no-untyped-def"


@device
def nearest(units, GRID: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The nearest grid values; NaN, which a GPU's minimum and maximum would hide, stays."""
    if GRID == 0:
        rounded = round_int(units, LOW, HIGH)
    elif GRID == 1:
        rounded = round_e4m3(units)
    else:
        rounded = round_e2m1(units)
    return tl.where(units == units, rounded, units)


@device
def stored_as(values, pointer, INTERPRETED: tl.constexpr):
    """Values in the type that a pointer is to, ties to even: the interpreter would cut bfloat16 off."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        values = round_bf16(values)
    return values.to(pointer.dtype.element_ty)
