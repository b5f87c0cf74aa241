"""The search for scales of ggml's block formats: one program has a few super-blocks in registers from end to end.

`optcore.algorithms.super_blocks` is the definition, which says what is searched and why. Legend: R super-blocks of S
blocks of V weights; formats without super-blocks have S = 1. Levels are unit, scale, floor unit and minimum as float32:
step = unit * scale, floor = -(floor unit * minimum). Without super-blocks scale is 1 and
minimum -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from optcore.algorithms.block_fit import Room
from optcore.algorithms.rounding import grid_of
from optcore.algorithms.super_blocks import NOISE, BlockScales, factors_of, part_scales, scale_codes
from optcore.kernels.block_lines import (
    best_line,
    clamped,
    error_at,
    float16_of,
    gain_of,
    plain_line,
    sums_at,
)
from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import divided, round_even, signed_as
from optcore.schemes import SUPER_BLOCK, QuantArgs

if TYPE_CHECKING:
    import triton.language as tl

# Triton types these by what they are given, so that Python's annotations would say nothing.
# mypy: disable-error-code="no-untyped-def"

_PART_values = 2**17
# One warp, eight weights a thread: sums over blocks and super-blocks then need no barrier and no shared memory.
_PROGRAM_values = 256
_INTERPRETED_values = 2048  # there, only the number of programs costs
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@kernel
def _search_levels(
    weight_ptr, importance_ptr, scale_ptr, unit_ptr, minimum_ptr, floor_unit_ptr, supers, per_row, row_stride, noise,
    GRID: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SUPER: tl.constexpr, LEAST: tl.constexpr,
    MOST: tl.constexpr, SEARCHED: tl.constexpr, FACTORS: tl.constexpr, WEIGHTED: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """The stored levels of R super-blocks."""
    super_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    here_R = super_R < supers
    place_SV = tl.arange(0, S)[:, None] * V + tl.arange(0, V)[None, :]
    first_R, column_R = super_R // per_row * row_stride, super_R % per_row * (S * V)
    place_RSV = (first_R + column_R)[:, None, None] + place_SV[None, :, :]
    value_RSV = tl.load(weight_ptr + place_RSV, mask=here_R[:, None, None], other=0.0).to(tl.float32)
    importance_RSV, weighted_RSV, mass_RS = value_RSV, value_RSV, V * 1.0
    if WEIGHTED:
        importance_at = importance_ptr + column_R[:, None, None] + place_SV[None, :, :]
        importance_RSV = tl.load(importance_at, mask=here_R[:, None, None], other=1.0).to(tl.float32)
        weighted_RSV, mass_RS = value_RSV * importance_RSV, tl.sum(importance_RSV, 2)
    total_RS = tl.sum(weighted_RSV, 2)

    block = (value_RSV, weighted_RSV, importance_RSV, total_RS, mass_RS)
    step_RS, floor_RS = plain_line(value_RSV, GRID, SUPER, LOW, HIGH)
    levels = _plain_levels(step_RS, floor_RS, GRID, SUPER, LEAST, MOST)
    if SEARCHED:
        sums = _sums_of_best(block, step_RS, floor_RS, levels, GRID, SUPER, WEIGHTED, LOW, HIGH, FACTORS)
        found = _fitted_levels(sums, block, levels, GRID, SUPER, LEAST, MOST)
        if GRID == "uint":
            sums = sums_at(block, _step(found), _floor(found), GRID, WEIGHTED, LOW, HIGH)
            found = _fitted_levels(sums, block, found, GRID, SUPER, LEAST, MOST)
            error = error_at(block, _step(levels), _floor(levels), GRID, WEIGHTED, LOW, HIGH)
            is_better = error_at(block, _step(found), _floor(found), GRID, WEIGHTED, LOW, HIGH) < error
        else:
            known = sums_at(block, _step(levels), _floor(levels), GRID, WEIGHTED, LOW, HIGH)
            gain = _gain(levels, known, block, GRID)
            is_better = _gain(found, sums, block, GRID) > gain * (1 + noise)
        levels = _where(is_better, found, levels)
    _store(levels, scale_ptr, unit_ptr, minimum_ptr, floor_unit_ptr, super_R, here_R, GRID, SUPER, S)


@device
def _sums_of_best(block, step, floor, levels, GRID: tl.constexpr, SUPER: tl.constexpr, WEIGHTED: tl.constexpr,
                  LOW: tl.constexpr, HIGH: tl.constexpr, FACTORS: tl.constexpr):  # fmt: skip
    """The sums through whose codes the best least-squares line goes: at the stored line, and at multiples of the plain
    step."""
    square, product, code = sums_at(block, _step(levels), _floor(levels), GRID, WEIGHTED, LOW, HIGH)
    best = _comparable(best_line((square, product, code), block, GRID == "uint", SUPER)[2])
    for line in tl.static_range(len(FACTORS)):
        tried = sums_at(block, step * FACTORS[line], floor, GRID, WEIGHTED, LOW, HIGH)
        gain = _comparable(best_line(tried, block, GRID == "uint", SUPER)[2])
        is_better = gain > best
        best = tl.where(is_better, gain, best)
        square = tl.where(is_better, tried[0], square)
        product = tl.where(is_better, tried[1], product)
        code = tl.where(is_better, tried[2], code)
    return square, product, code


@device
def _store(levels, scale_ptr, unit_ptr, minimum_ptr, floor_unit_ptr, super_R, here_R, GRID: tl.constexpr,
           SUPER: tl.constexpr, S: tl.constexpr):  # fmt: skip
    unit, scale, floor_unit, minimum = levels
    block_RS, one_R1, here_R1 = super_R[:, None] * S + tl.arange(0, S)[None, :], super_R[:, None], here_R[:, None]
    if SUPER:
        tl.store(scale_ptr + block_RS, scale.to(tl.int32).to(scale_ptr.dtype.element_ty), mask=here_R1)
        tl.store(unit_ptr + one_R1, unit.to(tl.float16), mask=here_R1)
        if GRID == "uint":
            tl.store(minimum_ptr + block_RS, minimum.to(tl.int32).to(tl.uint8), mask=here_R1)
            tl.store(floor_unit_ptr + one_R1, floor_unit.to(tl.float16), mask=here_R1)
    else:
        tl.store(scale_ptr + block_RS, unit.to(tl.float16), mask=here_R1)
        if GRID == "uint":
            tl.store(minimum_ptr + block_RS, floor_unit.to(tl.float16), mask=here_R1)


@device
def _step(levels):
    return levels[0] * levels[1]


@device
def _floor(levels):
    return -(levels[2] * levels[3])


@device
def _gain(levels, sums, block, GRID: tl.constexpr):
    """Of super-blocks [R, 1]."""
    return tl.sum(gain_of(_step(levels), _floor(levels), sums, block, GRID == "uint"), 1, keep_dims=True)


@device
def _where(is_chosen, levels, others):
    unit, scale = tl.where(is_chosen, levels[0], others[0]), tl.where(is_chosen, levels[1], others[1])
    return unit, scale, tl.where(is_chosen, levels[2], others[2]), tl.where(is_chosen, levels[3], others[3])


@device
def _comparable(gain):
    """A gain among which the largest is sought: no line is worse than any."""
    return tl.where(gain == gain, gain, float("-inf"))


@device
def _plain_levels(step, floor, GRID: tl.constexpr, SUPER: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """A line for each block as it is stored: the largest step gets the last integer."""
    if not SUPER:
        return _free(step, floor, GRID)
    elif GRID == "uint":
        unit = float16_of(divided(tl.max(step, 1, keep_dims=True), MOST))
        floor_unit = float16_of(divided(-tl.min(floor, 1, keep_dims=True), MOST))
        return unit, _integers(divided(step, unit), GRID, LEAST, MOST), floor_unit, _minimums(floor, floor_unit, MOST)
    else:
        unit = float16_of(divided(_peak(step), LEAST))
        return unit, _integers(divided(step, unit), GRID, LEAST, MOST), unit, step


@device
def _fitted_levels(sums, block, known, GRID: tl.constexpr, SUPER: tl.constexpr, LEAST: tl.constexpr,
                   MOST: tl.constexpr):  # fmt: skip
    """The best levels found for the codes that are there; the known ones where codes do not determine a line."""
    step, floor, gain = best_line(sums, block, GRID == "uint", SUPER)
    is_sound = tl.abs(gain) < float("inf")
    step, floor = tl.where(is_sound, step, _step(known)), tl.where(is_sound, floor, _floor(known))
    if not SUPER:
        return _free(step, floor, GRID)
    else:
        if GRID == "uint":
            levels = _affine(step, floor, sums, block, LEAST, MOST)
        else:
            levels = _symmetric(step, sums, GRID, LEAST, MOST)
        refit = _refitted(sums, block, levels, GRID == "uint")
        return _where(_gain(refit, sums, block, GRID) > _gain(levels, sums, block, GRID), refit, levels)


@device
def _symmetric(step, sums, GRID: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """The unit that serves the blocks' steps best, of those that map the largest beside the end of the integers."""
    peak = _peak(step)
    unit = float16_of(divided(peak, LEAST - 1.0))
    best = _unit_gain(step, sums, unit, LEAST, MOST)
    for end in tl.static_range(3):
        tried_unit = float16_of(divided(peak, LEAST + end * 1.0))
        tried = _unit_gain(step, sums, tried_unit, LEAST, MOST)
        unit, best = tl.where(tried > best, tried_unit, unit), tl.where(tried > best, tried, best)
    return unit, _integers(divided(step, unit), GRID, LEAST, MOST), unit, step


@device
def _unit_gain(step, sums, unit, LEAST: tl.constexpr, MOST: tl.constexpr):
    """What steps in units gain, without floors [R, 1]."""
    step = clamped(round_even(divided(step, unit)), LEAST, MOST) * unit
    return tl.sum((2 * sums[1] - step * sums[0]) * step, 1, keep_dims=True)


@device
def _affine(step, floor, sums, block, LEAST: tl.constexpr, MOST: tl.constexpr):
    """The two units that serve the blocks' lines best together, of six each. A minimum is the best one for the step
    that its block got."""
    last, last_floor = tl.max(step, 1, keep_dims=True), -tl.min(floor, 1, keep_dims=True)
    total, mass = block[3], block[4]
    unit, floor_unit = float16_of(divided(last, MOST + 0.5)), float16_of(divided(last_floor, MOST + 0.5))
    best, place = tl.full(last.shape, float("-inf"), tl.float32), tl.full(last.shape, 0, tl.int32)
    for number in range(6):  # not unrolled: the compiler would take half a minute over 36 of them
        tried_unit = float16_of(divided(last, MOST + 0.5 - number * 0.5))
        gain = _unit_gain(step, sums, tried_unit, LEAST, MOST)
        pull = total - clamped(round_even(divided(step, tried_unit)), LEAST, MOST) * tried_unit * sums[2]
        for floor_number in range(6):
            tried_floor_unit = float16_of(divided(last_floor, MOST + 0.5 - floor_number * 0.5))
            tried = gain + _floor_gain(pull, mass, tried_floor_unit, MOST)
            # Of equal ones the first in the definition's order, which has the floors' units outside.
            at = floor_number * 6 + number
            is_better = (tried > best) | ((tried == best) & (at < place))
            unit = tl.where(is_better, tried_unit, unit)
            floor_unit = tl.where(is_better, tried_floor_unit, floor_unit)
            best, place = tl.where(is_better, tried, best), tl.where(is_better, at, place)
    scale = _integers(divided(step, unit), "uint", LEAST, MOST)
    floor = divided(total - unit * scale * sums[2], mass)
    return unit, scale, floor_unit, _minimums(floor, floor_unit, MOST)


@device
def _floor_gain(pull, mass, unit, MOST: tl.constexpr):
    """What minimums in units gain at their best [R, 1]."""
    floor = clamped(round_even(divided(pull, mass * -unit)), 0.0, MOST) * -unit
    return tl.sum((pull - 0.5 * floor * mass) * floor, 1, keep_dims=True) * 2


@device
def _refitted(sums, block, levels, AFFINE: tl.constexpr):
    """The units by least squares, the integers as they are."""
    unit, scale, floor_unit, minimum = levels
    square = tl.sum(scale * scale * sums[0], 1, keep_dims=True)
    product = tl.sum(scale * sums[1], 1, keep_dims=True)
    if AFFINE:
        mixed = -tl.sum(scale * minimum * sums[2], 1, keep_dims=True)
        total = -tl.sum(minimum * block[3], 1, keep_dims=True)
        mass = tl.sum(minimum * minimum * block[4], 1, keep_dims=True)
        determinant = square * mass - mixed * mixed
        better = _sure(divided(product * mass - mixed * total, determinant), unit)
        floor_unit = _sure(divided(square * total - mixed * product, determinant), floor_unit)
        return better, scale, floor_unit, minimum
    else:
        return _sure(divided(product, square), unit), scale, floor_unit, minimum


@device
def _sure(unit, known):
    return float16_of(tl.where(tl.abs(unit) < float("inf"), unit, known))


@device
def _free(step, floor, GRID: tl.constexpr):
    unit = float16_of(step)
    if GRID == "iq":  # the codebook has no zero: blocks of zeros need a step of zero
        unit = tl.where(step == 0, 0.0, unit)
    one = tl.full(step.shape, 1.0, tl.float32)
    return unit, one, clamped(floor, -65504.0, 65504.0).to(tl.float16).to(tl.float32), -one


@device
def _integers(ratio, GRID: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    ratio = tl.where(ratio == ratio, ratio, 0.0)
    codes = clamped(round_even(ratio), LEAST, MOST)
    return codes if GRID == "iq" else signed_as(tl.maximum(tl.abs(codes), 1.0), ratio)


@device
def _minimums(floor, unit, MOST: tl.constexpr):
    return clamped(round_even(divided(floor, -unit)), 0.0, MOST)


@device
def _peak(step):
    """The step of the largest magnitude in each super-block."""
    low, high = tl.min(step, 1, keep_dims=True), tl.max(step, 1, keep_dims=True)
    return tl.where(high > -low, high, low)


def _launch(weight_NK: torch.Tensor, args: QuantArgs, importance_K: torch.Tensor | None, searched: bool) -> BlockScales:
    (rows, columns), size = weight_NK.shape, args.group_size or 0
    width, is_super, affine = _width(columns, args), args.scale_type == "super", args.type == "uint"
    known = args.type in ("int", "uint", "iq") and size in (16, 32) and not (affine and args.symmetric)
    if not known or weight_NK.dtype not in _DTYPES or (importance_K is not None and importance_K.ndim != 1):
        return NotImplemented
    weight_NK = weight_NK if weight_NK.stride(1) == 1 else weight_NK.contiguous()
    importance_K = None if importance_K is None else importance_K.contiguous()

    def stored(per: int, kind: torch.dtype) -> torch.Tensor:
        return torch.empty(rows, columns // per, dtype=kind, device=weight_NK.device)

    scale = stored(size, (torch.uint8 if affine else torch.int8) if is_super else torch.float16)
    minimum = stored(size, torch.uint8 if is_super else torch.float16) if affine else None
    units = stored(width, torch.float16) if is_super else None
    floor_units = stored(width, torch.float16) if is_super and affine else None
    supers, grid = rows * columns // width, grid_of(args)
    at_once = max(1, (_INTERPRETED_values if interpreted() else _PROGRAM_values) // width)
    least, most = scale_codes(args) if is_super else (0, 0)
    if supers:
        low, high = grid.range or (-grid.reach, grid.reach)
        _search_levels[(-(-supers // at_once),)](
            weight_NK, importance_K, scale, units, minimum, floor_units,
            supers, columns // width, weight_NK.stride(0), NOISE,
            GRID=args.type, LOW=float(low), HIGH=float(high), SUPER=is_super, LEAST=float(least), MOST=float(most),
            SEARCHED=searched, FACTORS=factors_of(args), WEIGHTED=importance_K is not None,
            R=at_once, S=width // size, V=size, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return BlockScales(scale, units, minimum, floor_units)


def _width(columns: int, args: QuantArgs) -> int:
    """Weights that are fitted together."""
    width = SUPER_BLOCK if args.scale_type == "super" else args.group_size or columns
    if columns % width:
        raise ValueError(f"{columns} inputs are not a multiple of {width}, the size of a block of this format")
    return width


@launched_by(_launch)
def block_scales(
    weight_NK: torch.Tensor, args: QuantArgs, importance_K: torch.Tensor | None, searched: bool
) -> BlockScales:
    """Scales of W, float32 [N, K], by the ends of each block, or `searched` for the least squared error.

    The error is weighted by the importance of inputs. K must be a multiple of 256 where blocks have super-blocks.
    A kernel adds in another order, so that near ties fall otherwise: for some hundred thousand weights the squared
    error is then up to 3e-4 larger, or smaller. Without the search the bits are the same.
    """
    rows, columns = weight_NK.shape
    width = _width(columns, args)
    at_once = min(max(1, _PART_values // columns), max(1, rows))
    room = Room(at_once * columns, weight_NK.device)
    parts = [
        part_scales(weight_NK[start : start + at_once], args, importance_K, searched, width, room)
        for start in range(0, rows, at_once)
    ]
    return BlockScales(*(None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)))
