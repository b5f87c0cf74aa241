"""Lines through blocks of weights inside kernels, as `optcore.algorithms.block_fit` defines them: w = step * c + floor.

Values are [R, S, V]: V of each of S blocks of R super-blocks, all in registers. What belongs to a block is [R, S], to a
super-block [R, 1]. A `block` is its values, these weighted, their importance, the sum of the weighted ones and that of
the importance; `sums` are of c^2, c w and c. Without AFFINE there is no floor: what stands in its place is not looked
at. NaN, which stands for "no line", goes through every step as it does in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optcore.kernels.jit import device
from optcore.kernels.numbers import divided, round_even, signed_as

if TYPE_CHECKING:
    import triton.language as tl

# Triton types these by what they are given, so that Python's annotations would say nothing.
# mypy: disable-error-code="no-untyped-def"


@device
def clamped(x, low, high):
    """x within two ends; NaN stays NaN."""
    return tl.minimum(
        tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL), high, propagate_nan=tl.PropagateNan.ALL
    )  # fmt: skip


@device
def codes_at(value_RSV, step_RS, floor_RS, GRID: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The codes nearest to a line, as float32: integers from LOW to HIGH, or values of the codebook."""
    # Times the zeros of a step of zero this is zero, not NaN.
    inverse_RS = clamped(divided(1.0, step_RS), -3.4028234663852886e38, 3.4028234663852886e38)
    code_RSV = value_RSV * inverse_RS[:, :, None]
    if GRID == "uint":
        code_RSV = -(floor_RS * inverse_RS)[:, :, None] + code_RSV
    if GRID == "iq":
        return _round_iq4(code_RSV)
    return clamped(round_even(code_RSV), LOW, HIGH)


@device
def sums_at(
    block, step_RS, floor_RS, GRID: tl.constexpr, WEIGHTED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):
    """Of c^2, of c w and of c over each block, at the codes nearest to a line."""
    value_RSV, weighted_RSV, importance_RSV, _, _ = block
    code_RSV = codes_at(value_RSV, step_RS, floor_RS, GRID, LOW, HIGH)
    counted_RSV = code_RSV
    if WEIGHTED:
        counted_RSV = code_RSV * importance_RSV
    product_RS = tl.sum(code_RSV * weighted_RSV, 2)
    return tl.sum(code_RSV * counted_RSV, 2), product_RS, tl.sum(counted_RSV, 2)


@device
def error_at(
    block, step_RS, floor_RS, GRID: tl.constexpr, WEIGHTED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):
    """The squared error of super-blocks [R, 1] at the nearest codes."""
    value_RSV, _, importance_RSV, _, _ = block
    code_RSV = codes_at(value_RSV, step_RS, floor_RS, GRID, LOW, HIGH)
    error_RSV = value_RSV - code_RSV * step_RS[:, :, None] - floor_RS[:, :, None]
    error_RSV *= error_RSV
    if WEIGHTED:
        error_RSV *= importance_RSV
    return tl.sum(tl.sum(error_RSV, 2), 1, keep_dims=True)


@device
def gain_of(step, floor, sums, block, AFFINE: tl.constexpr):
    """What a line takes off the error of all zeros."""
    square, product, code = sums
    total, mass = block[3], block[4]
    gain = step * (2 * product - step * square)
    if AFFINE:
        gain += floor * (2 * (total - step * code) - floor * mass)
    return gain


@device
def best_line(sums, block, AFFINE: tl.constexpr, BELOW_ZERO: tl.constexpr):
    """Step, floor and gain by least squares; NaN where all codes are alike."""
    square, product, code = sums
    total, mass = block[3], block[4]
    if AFFINE:
        step = divided(mass * product - code * total, mass * square - code * code)
        floor = divided(total - step * code, mass)
        if BELOW_ZERO:
            step = tl.where(floor > 0, divided(product, square), step)
            floor = tl.minimum(floor, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return step, floor, gain_of(step, floor, sums, block, True)
    else:
        step = divided(product, square)
        return step, step, step * product


@device
def plain_line(value_RSV, GRID: tl.constexpr, BELOW_ZERO: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The line whose ends are a block's: see `block_fit.plain_fit`."""
    low_RS, high_RS = tl.min(value_RSV, 2), tl.max(value_RSV, 2)
    if GRID == "uint":
        if BELOW_ZERO:
            low_RS = tl.minimum(low_RS, 0.0)
        return divided(high_RS - low_RS, HIGH), low_RS
    elif LOW == -128:
        step_RS = divided(tl.maximum(-low_RS, high_RS), 127.0)
        return step_RS, step_RS
    else:
        step_RS = divided(tl.where(high_RS > -low_RS, high_RS, low_RS), LOW)
        return step_RS, step_RS


@device
def float16_of(x):
    """What a step is as float16, in float32: see `storage.half`."""
    magnitude = clamped(tl.abs(x), 5.960464477539063e-08, 65504.0)
    return signed_as(magnitude, x + 0.0).to(tl.float16).to(tl.float32)


@device
def _round_iq4(x):
    """The nearest value of the codebook, ties to the lower; NaN counts as zero. Differences of `rounding.IQ4_VALUES`
    where x is above the middle of two."""
    x = tl.where(x == x, x, 0.0)
    value = tl.where(x > -115.5, 23.0, 0.0) + tl.where(x > -93.5, 21.0, 0.0) + tl.where(x > -74.0, 18.0, 0.0)
    value += tl.where(x > -57.0, 16.0, 0.0) + tl.where(x > -42.0, 14.0, 0.0) + tl.where(x > -28.5, 13.0, 0.0)
    value += tl.where(x > -16.0, 12.0, 0.0) + tl.where(x > -4.5, 11.0, 0.0) + tl.where(x > 7.0, 12.0, 0.0)
    value += tl.where(x > 19.0, 12.0, 0.0) + tl.where(x > 31.5, 13.0, 0.0) + tl.where(x > 45.5, 15.0, 0.0)
    value += tl.where(x > 61.0, 16.0, 0.0) + tl.where(x > 79.0, 20.0, 0.0) + tl.where(x > 101.0, 24.0, 0.0)
    return value - 127.0
