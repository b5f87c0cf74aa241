"""Scales of ggml's block formats: float16 ones, or small integers times what a super-block of 256 weights shares.

    fit a line to each block  ->  choose the super-block's units, and with them the integers  ->  round anew, refit

ggml does the first and then rounds (`make_qkx2_quants` and its like in ggml-quants.c). Here the units are searched too,
by the blocks' sums of least squares alone, which are small; the weights are gone through again only to round them anew.
Shapes are those of `block_fit`: S blocks of each of B super-blocks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from optcore.algorithms.block_fit import Blocks, Fit, Sums, plain_fit, searched_fit
from optcore.algorithms.rounding import Grid, grid_of
from optcore.algorithms.storage import half
from optcore.schemes import SUPER_BLOCK, QuantArgs

_PART_values = 2**16
_ROUNDS = 2
_FACTORS = {
    2: (0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    3: (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1),
    4: (0.8, 0.85, 0.9, 0.93, 0.96, 1.0, 1.03, 1.06),
    5: (0.88, 0.91, 0.94, 0.96, 0.98, 1.0, 1.02),
    6: (0.96, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02),
    8: (0.99, 0.9925, 0.995, 0.9975, 1.0),
}


class BlockScales(NamedTuple):
    """As stored: [N, K/g], what super-blocks share [N, K/256]."""

    scale: torch.Tensor
    super_scale: torch.Tensor | None = None
    minimum: torch.Tensor | None = None
    super_minimum: torch.Tensor | None = None


def block_scales(
    weight_NK: torch.Tensor, args: QuantArgs, importance_K: torch.Tensor | None, searched: bool
) -> BlockScales:
    """Scales of W, float32 [N, K], by the ends of each block, or `searched` for the least squared error.

    The error is weighted by the importance of inputs. K must be a multiple of 256 where blocks have super-blocks.
    """
    rows, columns = weight_NK.shape
    width = SUPER_BLOCK if args.scale_type == "super" else args.group_size or columns
    if columns % width:
        raise ValueError(f"{columns} inputs are not a multiple of {width}, the size of a block of this format")
    at_once = max(1, _PART_values // columns)
    parts = [
        _part(weight_NK[start : start + at_once], args, importance_K, searched, width)
        for start in range(0, rows, at_once)
    ]
    return BlockScales(*(None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)))


def scale_codes(args: QuantArgs) -> tuple[int, int]:
    """Smallest and largest integer scale of a format with super-blocks; 0, which nothing can be divided by, is used
    by no format that has a zero among its values."""
    assert args.scale_bits is not None
    half_range = 2 ** (args.scale_bits - 1)
    return (-half_range, half_range - 1) if args.symmetric else (1, 2 * half_range - 1)


def _part(
    weight_NK: torch.Tensor, args: QuantArgs, importance_K: torch.Tensor | None, searched: bool, width: int
) -> BlockScales:
    rows, columns = weight_NK.shape
    size = args.group_size or columns

    def laid_out(matrix_NK: torch.Tensor) -> torch.Tensor:
        return matrix_NK.reshape(-1, width // size, size).permute(2, 1, 0).contiguous()

    importance = None if importance_K is None else laid_out(importance_K.float().expand(rows, -1))
    blocks, grid = Blocks.of(laid_out(weight_NK), importance), grid_of(args)
    levels = _levels(blocks, grid, args, searched)

    def stored(per_block: torch.Tensor | None, kind: torch.dtype) -> torch.Tensor | None:
        return None if per_block is None else per_block.mT.reshape(rows, -1).to(kind)

    if args.scale_type == "f16":
        scale = stored(levels.step, torch.float16)
        assert scale is not None
        return BlockScales(scale, minimum=stored(levels.floor, torch.float16))
    scale = stored(levels.scale, torch.int8 if args.symmetric else torch.uint8)
    assert scale is not None
    units = (stored(levels.unit, torch.float16), stored(levels.floor_unit, torch.float16))
    return BlockScales(scale, units[0], stored(levels.minimum, torch.uint8), units[1])


class _Levels(NamedTuple):
    """Scales as they will be stored, in float32, and what they decode to."""

    step: torch.Tensor
    floor: torch.Tensor | None = None
    unit: torch.Tensor | None = None
    """[1, B]"""
    scale: torch.Tensor | None = None
    floor_unit: torch.Tensor | None = None
    minimum: torch.Tensor | None = None

    def where(self, chosen_B: torch.Tensor, other: "_Levels") -> "_Levels":
        """Super-block by super-block, these or the others."""
        pairs = zip(self, other, strict=True)
        return _Levels(*(None if a is None or b is None else torch.where(chosen_B, a, b) for a, b in pairs))


def _levels(blocks: Blocks, grid: Grid, args: QuantArgs, searched: bool) -> _Levels:
    below_zero = args.scale_type == "super"
    plain = plain_fit(blocks, grid, below_zero=None if args.symmetric else below_zero)
    found = _plain_levels(plain, args)
    if not searched:
        return found
    error_B = blocks.judged(grid, found.step, found.floor)[1].sum(0)
    fit = searched_fit(blocks, grid, plain, _FACTORS[args.bits], below_zero=below_zero)
    sums = blocks.at(grid, fit.step, fit.floor)
    for _ in range(_ROUNDS):
        levels = _fitted(sums, fit, args)
        sums, error = blocks.judged(grid, levels.step, levels.floor)
        found = levels.where(error.sum(0) < error_B, found)
        error_B = torch.fmin(error_B, error.sum(0))
        fit = _sound(sums.best(below_zero=below_zero), levels)
    return found


def _sound(fit: Fit, levels: _Levels) -> Fit:
    """The stored line where the codes do not determine one."""
    is_sound = fit.gain.isfinite()
    floor = None if fit.floor is None or levels.floor is None else torch.where(is_sound, fit.floor, levels.floor)
    return Fit(torch.where(is_sound, fit.step, levels.step), floor, fit.gain)


def _plain_levels(plain: Fit, args: QuantArgs) -> _Levels:
    if args.scale_type == "f16":
        return _free(plain.step, plain.floor, args)
    low, high = scale_codes(args)
    if args.symmetric:
        unit = _stored(_peak(plain.step) / low)
        return _scaled(unit, _integers(plain.step / unit, args))
    assert plain.floor is not None
    unit, floor_unit = (
        _stored(plain.step.amax(0, keepdim=True) / high),
        _stored(-plain.floor.amin(0, keepdim=True) / high),
    )
    minimum = (-plain.floor / floor_unit).round_().clamp_(0, high)
    return _scaled(unit, _integers(plain.step / unit, args), floor_unit, minimum)


def _fitted(sums: Sums, fit: Fit, args: QuantArgs) -> _Levels:
    """The best levels found for the codes that are there."""
    if args.scale_type == "f16":
        return _free(fit.step, fit.floor, args)
    candidates = _symmetric(sums, fit, args) if args.symmetric else _affine(sums, fit, args)
    best = next(candidates)
    best_B = sums.gain(best.step, best.floor).sum(0)
    for levels in candidates:
        gain_B = sums.gain(levels.step, levels.floor).sum(0)
        best, best_B = levels.where(gain_B > best_B, best), torch.fmax(gain_B, best_B)
    refit = _refitted(sums, best)
    return refit.where(sums.gain(refit.step, refit.floor).sum(0) > best_B, best)


def _symmetric(sums: Sums, fit: Fit, args: QuantArgs) -> Iterator[_Levels]:
    low, _ = scale_codes(args)
    peak = _peak(fit.step)
    for tenths in range(-4, 12):
        unit = _stored(peak / (low + tenths / 2))
        yield _scaled(unit, _integers(fit.step / unit, args))


def _affine(sums: Sums, fit: Fit, args: QuantArgs) -> Iterator[_Levels]:
    assert fit.floor is not None
    _, high = scale_codes(args)
    peak, depth = fit.step.amax(0, keepdim=True), -fit.floor.amin(0, keepdim=True)
    for up in range(-1, 5):
        unit = _stored(peak / (high - up / 2))
        scale = _integers(fit.step / unit, args)
        floor = sums.floor_at(unit * scale)
        for down in range(-1, 5):
            floor_unit = _stored(depth / (high - down / 2))
            yield _scaled(unit, scale, floor_unit, (-floor / floor_unit).round_().clamp_(0, high))


def _refitted(sums: Sums, levels: _Levels) -> _Levels:
    """The units by least squares, the integers as they are."""
    unit, scale, minimum = levels.unit, levels.scale, levels.minimum
    assert unit is not None
    assert scale is not None
    square = (scale.square() * sums.square).sum(0, keepdim=True)
    product = (scale * sums.product).sum(0, keepdim=True)
    if minimum is None or sums.code is None or levels.floor_unit is None:
        return _scaled(_sure(product / square, unit), scale)
    mass = (minimum.square() * sums.blocks.mass).sum(0, keepdim=True)
    total = -(minimum * sums.blocks.total).sum(0, keepdim=True)
    mixed = -(scale * minimum * sums.code).sum(0, keepdim=True)
    determinant = square * mass - mixed.square()
    best = (product * mass - mixed * total) / determinant
    best_floor = (square * total - mixed * product) / determinant
    return _scaled(_sure(best, unit), scale, _sure(best_floor, levels.floor_unit), minimum)


def _sure(unit: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return _stored(torch.where(unit.isfinite(), unit, known))


def _scaled(
    unit: torch.Tensor,
    scale: torch.Tensor,
    floor_unit: torch.Tensor | None = None,
    minimum: torch.Tensor | None = None,
) -> _Levels:
    floor = None if floor_unit is None or minimum is None else -(floor_unit * minimum)
    return _Levels(unit * scale, floor, unit, scale, floor_unit, minimum)


def _free(step: torch.Tensor, floor: torch.Tensor | None, args: QuantArgs) -> _Levels:
    stored = _stored(step)
    if args.type == "iq":  # the codebook has no zero: blocks of zeros need a step of zero
        stored = torch.where(step == 0, 0.0, stored)
    return _Levels(stored, None if floor is None else _saturated(floor))


def _stored(step: torch.Tensor) -> torch.Tensor:
    return half(step).float()


def _saturated(floor: torch.Tensor) -> torch.Tensor:
    largest = torch.finfo(torch.float16).max
    return floor.clamp(-largest, largest).to(torch.float16).float()


def _integers(ratio: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    low, high = scale_codes(args)
    codes = ratio.nan_to_num_(0.0).round_().clamp_(low, high)
    return codes if args.type == "iq" else torch.where(codes == 0, torch.where(ratio < 0, -1.0, 1.0), codes)


def _peak(step: torch.Tensor) -> torch.Tensor:
    """The step of the largest magnitude in each super-block, [1, B]."""
    return step.gather(0, step.abs().argmax(0, keepdim=True))
