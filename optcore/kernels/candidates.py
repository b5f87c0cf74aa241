"""One scale's stored number, what it rounds values to and how far from them: what kernels that choose scales share.

Constants name a format: ELEMENT `int` (LOW to HIGH), `e4m3` or `e2m1`; STORAGE `float32`, `bfloat16`, `float16`,
`e4m3` (codes of steps times a divisor) or `e8m0`; REACH is `rounding.scale_reach`. Codes are int32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optcore.kernels.jit import device
from optcore.kernels.numbers import (
    decode_e4m3,
    decode_e8m0,
    divided,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    round_bf16,
    round_int,
)

if TYPE_CHECKING:
    import triton.language as tl

# Triton types these by what they are given, so that Python's annotations would say nothing.
# mypy: disable-error-code="no-untyped-def"


@device
def stored_number(step, divisor, REACH: tl.constexpr, STORAGE: tl.constexpr):
    """The nearest stored number, never one that stands for zero: `Storage.store`."""
    if STORAGE == "e8m0":
        return encode_e8m0(step * REACH, 8 if REACH == 256.0 else 2)
    elif STORAGE == "e4m3":
        code = encode_e4m3(step * divisor)
        return tl.where((code & 127) == 0, 32, code)  # 2^-3, the type's epsilon, as below
    elif STORAGE == "bfloat16":
        rounded = round_bf16(step)
        return tl.where(rounded == 0.0, 0.0078125, rounded)
    elif STORAGE == "float16":
        rounded = step.to(tl.float16).to(tl.float32)
        return tl.where(rounded == 0.0, 0.0009765625, rounded)
    else:
        return tl.where(step == 0.0, 1.1920928955078125e-07, step)


@device
def step_of(number, divisor, STORAGE: tl.constexpr):
    """The step of a stored number: `Storage.step`."""
    if STORAGE == "e8m0":
        return decode_e8m0(number)
    elif STORAGE == "e4m3":
        return divided(decode_e4m3(number), divisor)
    else:
        return number


@device
def candidate(plain, start, change, divisor, REACH: tl.constexpr, STORAGE: tl.constexpr):
    """A stored number to try: the plain code plus a change, or of the step `start` times a change."""
    if STORAGE == "e8m0":
        return tl.minimum(tl.maximum(plain + change, 0), 254)
    elif STORAGE == "e4m3":
        return tl.minimum(tl.maximum(plain + change, 1), 126)
    else:
        return stored_number(start * change, divisor, REACH, STORAGE)


@device
def squared_errors(values, step, ELEMENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Squares of how far values are from what they are rounded to; steps broadcast.

    Halfway between two grid values either is as far, so that here the inverse does for a division, at a fraction of
    its time; all else is the definition's arithmetic.
    """
    scaled = values * (1.0 / step)
    if ELEMENT == "int":
        whole = 12582912.0  # 1.5 * 2^23, where the spacing of float32 is 1
        rounded = (tl.minimum(tl.maximum(scaled, LOW), HIGH) + whole) - whole
        error = rounded * step - values
    elif ELEMENT == "e4m3":
        error = _round_magnitude(tl.abs(scaled), 448.0, 0.015625, 3) * step - tl.abs(values)
    else:
        error = _round_magnitude(tl.abs(scaled), 6.0, 1.0, 1) * step - tl.abs(values)
    return error * error


@device
def codes_of(values, step, ELEMENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Codes of the nearest grid values; of integers the integers."""
    scaled = divided(values, step)
    if ELEMENT == "int":
        return round_int(scaled, LOW, HIGH).to(tl.int32)
    elif ELEMENT == "e4m3":
        return encode_e4m3(scaled)
    else:
        return encode_e2m1(scaled)


@device
def _round_magnitude(x, largest, normal, MANTISSA: tl.constexpr):
    """What is not negative, to a small floating-point type: adding 2^23 times the spacing of its binade leaves no place
    for anything finer."""
    bounded = tl.minimum(x, largest)
    binade = tl.maximum(bounded, normal).to(tl.int32, bitcast=True) & 2139095040
    large = (binade + ((23 - MANTISSA) << 23)).to(tl.float32, bitcast=True)
    return (bounded + large) - large
