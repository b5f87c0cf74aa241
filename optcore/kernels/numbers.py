"""Rounding inside kernels, bit for bit that of `optcore.algorithms.rounding`. Blocks of any shape, float32 in.

Made of integer operations where hardware and interpreter differ: triton's interpreter truncates casts to bfloat16 and
FP8, and a GPU's plain division is not the nearest. Values must not be NaN; infinities saturate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optcore.kernels.jit import device

if TYPE_CHECKING:
    import triton.language as tl

# Triton types these by what they are given, so that Python's annotations would say nothing.
# mypy: disable-error-code="no-untyped-def"

GRIDS = {"int": 0, "e4m3": 1, "e2m1": 2, "nf4": 3, "iq4": 4}
"""What kernels know the grids of `rounding.grid_of` by: a constant of their own, by `Grid.name`."""


@device
def divided(a, b):
    """a / b to the nearest float32, as torch divides."""
    return tl.div_rn(a, b)


@device
def round_even(x):
    """The nearest integer as float32, ties to even."""
    magic = 12582912.0  # 1.5 * 2^23, where the spacing of float32 is 1
    return signed_as(tl.where(tl.abs(x) < 4194304.0, (x + magic) - magic, x), x)


@device
def signed_as(magnitude, x):
    """A value with the sign of another, which it has already or lacks: that of zero."""
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return (magnitude.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@device
def round_int(x, low, high):
    """The nearest integer from `low` to `high`, both small; minus zero becomes zero."""
    magic = 12582912.0  # as in `round_even`
    return (tl.minimum(tl.maximum(x, low), high) + magic) - magic


@device
def round_e2m1(x):
    """The nearest FP4 E2M1 value."""
    return _round_float(x + 0.0, 6.0, 1.0, 1)


@device
def round_e4m3(x):
    """The nearest FP8 E4M3 value."""
    return _round_float(x, 448.0, 0.015625, 3)


@device
def round_nf4(x):
    """The nearest NF4 value, ties to the lower."""
    values = (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )  # fmt: skip
    return _of_levels(x, values)


@device
def round_iq4(x):
    """The nearest value of ggml's IQ4 codebook, ties to the lower; NaN, of a step of zero, counts as zero."""
    values = (
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0,
        1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
    )  # fmt: skip
    return _of_levels(tl.where(x == x, x, 0.0), values)


@device
def nearest(x, low, high, GRID: tl.constexpr):
    """The nearest value of one of `GRIDS`; that of integers ends at `low` and `high`."""
    if GRID == 0:
        value = round_int(x, low, high)
    elif GRID == 1:
        value = round_e4m3(x)
    elif GRID == 2:
        value = round_e2m1(x)
    elif GRID == 3:
        value = round_nf4(x)
    else:
        value = round_iq4(x)
    return value


@device
def encode_e2m1(x):
    """The code of the nearest E2M1 value, int32 in 0..15."""
    magnitude = tl.minimum(tl.abs(x), 6.0)
    exponent = (tl.maximum(magnitude, 1.0).to(tl.int32, bitcast=True) >> 23) - 127
    halves = magnitude * 2.0 * ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    code = round_even(halves).to(tl.int32) + 2 * exponent
    return code | tl.where(x < 0, 8, 0)


@device
def decode_e2m1(code):
    """The value of an E2M1 code (int32 in 0..15)."""
    exponent, mantissa = (code >> 1) & 3, code & 1
    normal = (((exponent + 126) << 23) | (mantissa << 22)).to(tl.float32, bitcast=True)
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.5, normal)
    return signed_as(value, (code << 28).to(tl.float32, bitcast=True))


@device
def encode_e4m3(x):
    """The bits of the nearest E4M3 value, int32 in 0..255; a negative that rounds to zero keeps its sign."""
    magnitude = tl.abs(round_e4m3(x))
    bits = magnitude.to(tl.int32, bitcast=True)
    normal = (bits >> 20) - (120 << 3)
    subnormal = (magnitude * 512.0).to(tl.int32)
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 128
    return tl.where(magnitude < 0.015625, subnormal, normal) | sign


@device
def decode_e4m3(code):
    """The value of E4M3 bits (int32 in 0..255, none of them NaN)."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = (((exponent + 120) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.001953125, normal)
    return signed_as(value, (code << 24).to(tl.float32, bitcast=True))


@device
def encode_e8m0(amax, LARGEST: tl.constexpr):
    """Exponent codes (int32) of the powers of two by which `amax` comes into the binade of 2^LARGEST."""
    bits = amax.to(tl.int32, bitcast=True) + 2097152  # a quarter of a binade: see `rounding.encode_e8m0`
    return tl.minimum(tl.maximum((bits >> 23) - LARGEST, 0), 254)


@device
def decode_e8m0(code):
    """The power of two of an exponent code (int32)."""
    return tl.where(code == 0, 4194304, code << 23).to(tl.float32, bitcast=True)


@device
def round_bf16(x):
    """The nearest bfloat16 value as float32, ties to even. Casting that to bfloat16 is exact everywhere."""
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + 32767 + ((bits >> 16) & 1)) & 4294901760).to(tl.float32, bitcast=True)


@device
def _of_levels(x, values):
    """The nearest of sixteen values in rising order: the last one whose middle with the one before is below x."""
    found = tl.where(x > (values[0] + values[1]) / 2, values[1], values[0])
    for level in tl.static_range(2, 16):
        found = tl.where(x > (values[level - 1] + values[level]) / 2, values[level], found)
    return found


@device
def _round_float(x, largest, normal, mantissa):
    """A multiple of the spacing in the binade of x; see `rounding._round_float`. Adding a number so large that its own
    spacing is that one rounds, ties to even, and taking it away again is exact."""
    magnitude = tl.minimum(tl.abs(x), largest)
    binade = tl.maximum(magnitude, normal).to(tl.int32, bitcast=True) & 2139095040
    magic = (binade + ((23 - mantissa) << 23) | 4194304).to(tl.float32, bitcast=True)  # 1.5 * 2^23 spacings
    return signed_as((magnitude + magic) - magic, x)
