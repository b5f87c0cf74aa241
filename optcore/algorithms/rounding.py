"""Rounding to a number format's grid. All of it works on float32: dividing in bfloat16 would move many codes.

Legend: a *grid* is the set of values that a format holds before it is scaled; a *code* is the integer that stores one.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import floor, log2
from typing import NamedTuple

import torch

from optcore.schemes import QuantArgs

E4M3_MAX = 448.0
E2M1_MAX = 6.0
# FP4 E2M1 magnitudes by code (OCP Microscaling Formats 1.0, table 5); bit 3 of a code is the sign.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# NormalFloat4 by code: quantiles of a normal distribution, scaled to [-1, 1] (arXiv:2305.14314, appendix E).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# ggml's non-linear 4-bit codebook: `kvalues_iq4nl` of ggml-common.h.
IQ4_VALUES = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)


class Grid(NamedTuple):
    """A format's values before scaling."""

    name: str
    """What kernels know it by: `optcore.kernels.numbers.GRIDS`."""
    reach: float
    """The magnitude that the largest weight is mapped to: the scale by plain maximum is amax / reach."""
    round: Callable[[torch.Tensor], torch.Tensor]
    """Nearest grid value, float32 to float32."""
    encode: Callable[[torch.Tensor], torch.Tensor]
    """Code of the nearest grid value."""
    decode: Callable[[torch.Tensor], torch.Tensor]
    """Values of codes, float32: `decode(encode(x))` equals `round(x)`."""
    range: tuple[int, int] | None = None
    """Ends of a grid of integers, whose rounding may then be done in place."""

    @property
    def ends(self) -> tuple[float, float]:
        """Its smallest and largest value."""
        return self.range or (-self.reach, self.reach)


def grid_of(args: QuantArgs) -> Grid:
    """The grid of a format's elements."""
    if args.type == "int" and 2 <= args.bits <= 8:
        low, high = code_range(args.bits)
        # Half a step more than the largest code (127.5, 7.5) uses the full signed range, as compressed-tensors does.
        reach = (high - low) / 2
        rounded, encoded = partial(_round_int, low=low, high=high), partial(_encode_int, low=low, high=high)
        return Grid("int", reach, rounded, encoded, _float, (low, high))
    if args.type == "uint" and 2 <= args.bits <= 8:
        high = 2**args.bits - 1
        rounded = partial(_round_int, low=0, high=high)
        return Grid("int", high, rounded, lambda x: rounded(x).to(torch.uint8), _float, (0, high))
    if args.type == "float" and args.bits == 8:
        return Grid("e4m3", E4M3_MAX, lambda x: _round_float(x, E4M3_MAX, 2.0**-6, 3), round_e4m3, _float)
    if args.type == "float" and args.bits == 4:
        return Grid("e2m1", E2M1_MAX, round_e2m1, encode_e2m1, decode_e2m1)
    if args.type == "nf" and args.bits == 4:
        return Grid("nf4", 1.0, lambda x: decode_nf4(encode_nf4(x)), encode_nf4, decode_nf4)
    if args.type == "iq" and args.bits == 4:
        return Grid("iq4", -IQ4_VALUES[0], _round_iq4, encode_iq4, decode_iq4)
    raise ValueError(f"no {args.bits}-bit {args.type} grid")


def divided(values: torch.Tensor, number: float) -> torch.Tensor:
    """The nearest quotients: by a plain number, torch on a GPU multiplies with its reciprocal, another last bit."""
    wide = torch.promote_types(values.dtype, torch.float32)  # the number would be rounded to 16 bits too
    return values / values.new_full((), number, dtype=wide)


def scale_reach(args: QuantArgs) -> float:
    """What the largest magnitude is divided by: for powers of two one of them, so that their rule sees it unchanged."""
    reach = grid_of(args).reach
    return 2.0 ** floor(log2(reach)) if args.scale_type == "e8m0" else reach


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed integer code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def round_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Nearest FP8 E4M3 value, ties to even, saturating at 448. Same shape, float8_e4m3fn."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest FP4 E2M1 value, ties to the even code, saturating at 6. Same shape, float32."""
    return _round_float(x + 0.0, E2M1_MAX, 1.0, 1)  # minus zero is encoded as zero


def encode_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest FP4 E2M1 code, ties to the even code, saturating at 6. Same shape, uint8 in 0..15."""
    magnitude = x.abs().clamp_(max=E2M1_MAX)
    exponent = (magnitude.clamp(min=1.0).view(torch.int32) >> 23) - 127  # 0, 1 or 2: the spacing is half of 2^exponent
    code = (magnitude * 2 / (1 << exponent)).round_().to(torch.int32) + 2 * exponent
    return (code | ((x < 0).to(torch.int32) << 3)).to(torch.uint8)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Values of FP4 E2M1 codes. Same shape, float32."""
    return _look_up((*E2M1_VALUES, *(-value for value in E2M1_VALUES)), codes)


def encode_nf4(x: torch.Tensor) -> torch.Tensor:
    """Nearest NF4 code, ties to the lower, saturating at 1. Same shape, uint8 in 0..15.

    Two look-ups are several times faster than a binary search: x lies in one of 256 intervals, and none of these holds
    more than one of the middles between two values.
    """
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(NF4_VALUES)], device=x.device)
    edges = torch.arange(257, device=x.device) / 128 - 1
    below = torch.bucketize(edges, middles)
    within = torch.where(below[1:] > below[:-1], middles[below[:-1].clamp(max=14)], torch.inf)
    interval = ((x.flatten() + 1) * 128).clamp_(0, 255).to(torch.int32)
    is_above = x.flatten() > within.index_select(0, interval)
    return (below.to(torch.uint8).index_select(0, interval) + is_above).view(x.shape)


def decode_nf4(codes: torch.Tensor) -> torch.Tensor:
    """Values of NF4 codes. Same shape, float32."""
    return _look_up(NF4_VALUES, codes)


def encode_iq4(x: torch.Tensor) -> torch.Tensor:
    """Nearest code of ggml's IQ4 codebook, ties to the lower. Same shape, uint8 in 0..15; NaN, which a step of zero
    makes of zero, counts as zero."""
    return _iq4_codes(x).to(torch.uint8).index_select(0, _iq4_place(x)).view(x.shape)


def decode_iq4(codes: torch.Tensor) -> torch.Tensor:
    """Values of IQ4 codes. Same shape, float32."""
    return _look_up(IQ4_VALUES, codes)


def encode_e8m0(amax: torch.Tensor, reach: float) -> torch.Tensor:
    """Exponent codes (exponent + 127, uint8) of the powers of two that map amax to `reach`, an element's largest value.

    OCP Microscaling Formats 1.0, section 6.3, takes floor(log2(amax)) - floor(log2(reach)). Where the mantissa of amax
    is 1.75 or more that would clip it (above 448; above 7 in units of FP4), so there the exponent is one larger, as in
    compressed-tensors and vLLM: the bytes, and what an engine does with activations, are then the same.
    """
    largest = floor(log2(reach))  # 8 for E4M3, 2 for E2M1
    bits = amax.float().contiguous().view(torch.int32) + (1 << 21)  # a quarter of a binade
    return ((bits >> 23) - largest).clamp(0, 254).to(torch.uint8)


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Powers of two of exponent codes. Same shape, float32. Code 0 is 2^-127, below float32's normal numbers."""
    bits = codes.to(torch.int32)
    return torch.where(bits == 0, 1 << 22, bits << 23).view(torch.float32)


def _round_iq4(x: torch.Tensor) -> torch.Tensor:
    return _look_up(IQ4_VALUES, _iq4_codes(x)).index_select(0, _iq4_place(x)).view(x.shape)


def _iq4_codes(like: torch.Tensor) -> torch.Tensor:
    """Codes [513] of the halves from -128 to 128: twice a middle of two codes is an integer, so that all values between
    two halves have one nearest code."""
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(IQ4_VALUES)], device=like.device)
    return torch.bucketize(torch.arange(-256, 257, device=like.device) / 2, middles)


def _iq4_place(x: torch.Tensor) -> torch.Tensor:
    """Where values, rounded up to halves, stand in that table."""
    return (x.flatten() * 2).nan_to_num_(0.0).clamp_(-256, 256).ceil_().add_(256).to(torch.int32)


def _round_float(x: torch.Tensor, largest: float, normal: float, mantissa: int) -> torch.Tensor:
    """Nearest value of a small floating-point type, ties to even, saturating: a multiple of the spacing in the binade
    of x, which is 2^-mantissa of the binade's start and constant below the smallest normal number."""
    magnitude = x.abs().clamp_(normal, largest)
    binade = magnitude.view(torch.int32) & 0x7F800000
    spacing = (binade - (mantissa << 23)).view(torch.float32)
    return (x / spacing).round_().mul_(spacing).clamp_(-largest, largest)


def _look_up(values: tuple[float, ...], codes: torch.Tensor) -> torch.Tensor:
    table = torch.tensor(values, device=codes.device)
    return table.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)


def _round_int(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    # Adding 0.0 turns minus zero, which integers lack, into zero: the bits are those of the decoded code.
    return x.round().clamp_(low, high).add_(0.0)


def _encode_int(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return _round_int(x, low, high).to(torch.int8)


def _float(codes: torch.Tensor) -> torch.Tensor:
    return codes.float()
