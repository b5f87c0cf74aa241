"""Rounding to a number format's grid. All of it works on float32: dividing in bfloat16 would move many codes.

Legend: a *grid* is the set of values that a format holds before it is scaled; a *code* is the integer that stores one.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from optcore.schemes import QuantArgs

E4M3_MAX = 448.0
E2M1_MAX = 6.0
# FP4 E2M1 magnitudes by code (OCP Microscaling Formats 1.0, table 5); bit 3 of a code is the sign.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def round_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Nearest FP8 E4M3 value, ties to even, saturating at 448. Same shape, float8_e4m3fn."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def encode_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest FP4 E2M1 code, ties to the even code, saturating at 6. Same shape, uint8 in 0..15."""
    magnitude = torch.bucketize(x.abs(), _e2m1_boundaries(x.device), out_int32=True)
    return (magnitude | ((x < 0).to(torch.int32) << 3)).to(torch.uint8)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Values of FP4 E2M1 codes. Same shape, float32."""
    table = torch.tensor((*E2M1_VALUES, *(-value for value in E2M1_VALUES)), device=codes.device)
    return table[codes.to(torch.int64)]


def _e2m1_boundaries(device: torch.device) -> torch.Tensor:
    """Midpoints between magnitudes. Where the upper code is even a tie goes up, so that bound moves down by one ulp."""
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(E2M1_VALUES)], device=device)
    upper_is_even = torch.arange(1, len(E2M1_VALUES), device=device) % 2 == 0
    return torch.where(upper_is_even, torch.nextafter(middles, torch.zeros_like(middles)), middles)


class Grid(NamedTuple):
    """A format's values before scaling."""

    reach: float
    """The magnitude that the largest weight is mapped to: the scale by plain maximum is amax / reach."""
    round: Callable[[torch.Tensor], torch.Tensor]
    """Nearest grid value, float32 to float32."""


def grid_of(args: QuantArgs) -> Grid:
    """The grid of a format's elements."""
    if args.type == "int":
        # Half a step more than the largest code (127.5, 7.5) uses the full signed range, as compressed-tensors does.
        low, high = -(2 ** (args.bits - 1)), 2 ** (args.bits - 1) - 1
        return Grid((high - low) / 2, lambda x: x.round().clamp(low, high))
    if args.bits == 8:
        return Grid(E4M3_MAX, lambda x: round_e4m3(x).float())
    if args.bits == 4:
        return Grid(E2M1_MAX, lambda x: decode_e2m1(encode_e2m1(x)))
    raise ValueError(f"no {args.bits}-bit {args.type} grid")
