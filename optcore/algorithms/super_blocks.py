"""Scales of ggml's block formats: float16 ones, or small integers times what a super-block of 256 weights shares.

    fit a line to each block  ->  choose the super-block's units, and with them the integers  ->  round anew, refit

ggml does the first and then rounds (`make_qkx2_quants` and its like in ggml-quants.c). Here the units are searched too,
by the blocks' sums of least squares alone, which are small; the weights are gone through again only to round them anew.
Shapes are those of `block_fit`: S blocks of each of B super-blocks.
"""

from typing import NamedTuple

import torch

from optcore.algorithms.block_fit import Blocks, Fit, Sums, plain_fit, searched_sums
from optcore.algorithms.rounding import Grid, grid_of
from optcore.algorithms.storage import half
from optcore.schemes import SUPER_BLOCK, QuantArgs

_PART_values = 2**17
# Multiples of the plain step that are tried: the first, the last and how many. Above 1 the largest value does not need
# the last code, which leaves the phase of the grid to the other values.
_SYMMETRIC_FACTORS = {
    3: (0.75, 1.35, 6),
    4: (0.82, 1.15, 7),
    5: (0.9, 1.11, 7),
    6: (0.97, 1.06, 6),
    8: (0.99, 1.012, 5),
}
_AFFINE_FACTORS = {2: (0.7, 1.3, 7), 4: (0.88, 1.13, 9), 5: (0.93, 1.08, 9)}


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
    first, last, count = (_SYMMETRIC_FACTORS if args.symmetric else _AFFINE_FACTORS)[args.bits]
    factors = torch.linspace(first, last, count).tolist()
    sums, levels = searched_sums(blocks, grid, plain, factors, below_zero=below_zero), found
    # A second round takes 0.4 to 0.7 % off the error of lines with a floor, next to nothing off that of others.
    # Without importance it is left out: the search is then as fast as ggml's.
    for _ in range(1 if args.symmetric or blocks.importance is None else 2):
        levels = _fitted(sums, _sound(sums.best(below_zero=below_zero), levels), args)
        sums, error = blocks.judged(grid, levels.step, levels.floor)
        found = levels.where(error.sum(0) < error_B, found)
        error_B = torch.fmin(error_B, error.sum(0))
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
    minimum = _minimums(plain.floor, floor_unit, high)
    return _scaled(unit, _integers(plain.step / unit, args), floor_unit, minimum)


def _fitted(sums: Sums, fit: Fit, args: QuantArgs) -> _Levels:
    """The best levels found for the codes that are there."""
    if args.scale_type == "f16":
        return _free(fit.step, fit.floor, args)
    best = _symmetric(sums, fit, args) if args.symmetric else _affine(sums, fit, args)
    refit = _refitted(sums, best)
    gains = [sums.gain(levels.step, levels.floor).sum(0) for levels in (refit, best)]
    return refit.where(gains[0] > gains[1], best)


def _symmetric(sums: Sums, fit: Fit, args: QuantArgs) -> _Levels:
    """The unit that serves the blocks' steps best, of those that map the largest beside the end of the integers."""
    low, high = scale_codes(args)
    ends_C1 = torch.arange(low - 1, low + 4, 0.5, device=fit.step.device).unsqueeze(1)
    unit_1CB = _stored(_peak(fit.step) / ends_C1).unsqueeze(0)
    step_SCB = (fit.step.unsqueeze(1) / unit_1CB).round_().clamp_(low, high).mul_(unit_1CB)
    product_S1B, square_S1B = sums.product.unsqueeze(1), sums.square.unsqueeze(1)
    gain_CB = torch.addcmul(2 * product_S1B, step_SCB, square_S1B, value=-1).mul_(step_SCB).sum(0)
    unit = unit_1CB[0].gather(0, gain_CB.argmax(0, keepdim=True))
    return _scaled(unit, _integers(fit.step / unit, args))


def _affine(sums: Sums, fit: Fit, args: QuantArgs) -> _Levels:
    """The two units that serve the blocks' lines best together: D of the minimums for each of C of the steps. A
    minimum is the best one for the step that its block got."""
    assert fit.floor is not None
    assert sums.code is not None
    low, high = scale_codes(args)
    ends_C1 = torch.arange(high + 0.5, high - 2.5, -0.5, device=fit.step.device).unsqueeze(1)
    unit_1CB = _stored(fit.step.amax(0) / ends_C1).unsqueeze(0)
    floor_unit_DB = _stored(-fit.floor.amin(0) / ends_C1)
    step_SCB = (fit.step.unsqueeze(1) / unit_1CB).round_().clamp_(low, high).mul_(unit_1CB)
    gain_CB = torch.addcmul(2 * sums.product.unsqueeze(1), step_SCB, sums.square.unsqueeze(1), value=-1)
    gain_CB = gain_CB.mul_(step_SCB).sum(0)
    pull_SCB = torch.addcmul(sums.blocks.total.unsqueeze(1), step_SCB, sums.code.unsqueeze(1), value=-1)
    mass = sums.blocks.mass.unsqueeze(1) if sums.blocks.mass.ndim else sums.blocks.mass
    gain_DCB = _floor_gain(pull_SCB, mass, floor_unit_DB, high).add_(gain_CB)
    best_1B = gain_DCB.flatten(0, 1).argmax(0, keepdim=True)
    unit = unit_1CB[0].gather(0, best_1B % len(ends_C1))
    floor_unit = floor_unit_DB.gather(0, best_1B // len(ends_C1))
    scale = _integers(fit.step / unit, args)
    return _scaled(unit, scale, floor_unit, _minimums(sums.floor_at(unit * scale), floor_unit, high))


def _floor_gain(pull_SCB: torch.Tensor, mass: torch.Tensor, unit_DB: torch.Tensor, high: int) -> torch.Tensor:
    """What minimums in units gain at their best, super-block by super-block [D, C, B]."""
    pull_SDCB, unit_D1B = pull_SCB.unsqueeze(1), unit_DB.unsqueeze(1)
    mass = mass.unsqueeze(1) if mass.ndim else mass
    floor_SDCB = (pull_SDCB / (mass * -unit_D1B)).round_().clamp_(0, high).mul_(-unit_D1B)
    return torch.addcmul(pull_SDCB, floor_SDCB, mass, value=-0.5).mul_(floor_SDCB).sum(0).mul_(2)


def _minimums(floor: torch.Tensor, unit: torch.Tensor, high: int) -> torch.Tensor:
    return (floor / -unit).round_().clamp_(0, high)


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
