"""Scales of ggml's block formats: float16 ones, or small integers times what a super-block of 256 weights shares.

    fit a line to each block  ->  choose the super-block's units, and with them the integers  ->  round anew, refit

ggml does the first and then rounds (`make_qkx2_quants` and its like in ggml-quants.c). Here the units are searched too,
by the blocks' sums of least squares alone, which are small; the weights are gone through again only to round them anew.
Shapes are those of `block_fit`: S blocks of each of B super-blocks.
"""

from typing import NamedTuple

import torch

from optcore.algorithms.block_fit import Blocks, Fit, Room, Sums, plain_fit
from optcore.algorithms.rounding import Grid, grid_of
from optcore.algorithms.storage import half
from optcore.schemes import QuantArgs

NOISE = 2e-6
"""Of sums in float32 over a super-block, relative to them."""
# Multiples of the plain step that are tried beside it. Above 1 the largest value does not need the last code, which
# leaves the phase of the grid to the other values. The fewest that lose no more than half a percent to many.
_SYMMETRIC_FACTORS = {
    3: (0.76, 0.88, 1.24),
    4: (0.82, 0.89, 0.96, 1.03, 1.1),
    5: (0.93, 0.975, 1.02, 1.065, 1.11),
    6: (0.98, 1.0067, 1.0333, 1.06),
    8: (0.9925, 1.0003, 1.0082, 1.016),
}
_CODEBOOK_FACTORS = (0.82, 0.875, 0.93, 0.985, 1.04, 1.095, 1.15)
_AFFINE_FACTORS = {
    2: (0.75, 0.85, 0.95, 1.05, 1.15),
    4: (0.9, 0.94, 0.98, 1.02, 1.06, 1.1),
    5: (0.93, 0.949, 0.968, 0.986, 1.005, 1.024, 1.042, 1.061, 1.08),
}


class BlockScales(NamedTuple):
    """As stored: [N, K/g], what super-blocks share [N, K/256]."""

    scale: torch.Tensor
    super_scale: torch.Tensor | None = None
    minimum: torch.Tensor | None = None
    super_minimum: torch.Tensor | None = None


def scale_codes(args: QuantArgs) -> tuple[int, int]:
    """Smallest and largest integer scale of a format with super-blocks; 0, which nothing can be divided by, is used
    by no format that has a zero among its values."""
    assert args.scale_bits is not None
    half_range = 2 ** (args.scale_bits - 1)
    return (-half_range, half_range - 1) if args.symmetric else (1, 2 * half_range - 1)


def factors_of(args: QuantArgs) -> tuple[float, ...]:
    """Multiples of the plain step that a search tries."""
    table = _SYMMETRIC_FACTORS if args.symmetric else _AFFINE_FACTORS
    return _CODEBOOK_FACTORS if args.type == "iq" else table[args.bits]


def part_scales(
    weight_NK: torch.Tensor, args: QuantArgs, importance_K: torch.Tensor | None, searched: bool, width: int, room: Room
) -> BlockScales:
    """Scales of some rows of W: see `optcore.kernels.block_scales`. What is fitted together are `width` weights; sums
    are taken in a room that has space for these rows."""
    rows, columns = weight_NK.shape
    size = args.group_size or columns

    def laid_out(matrix_NK: torch.Tensor) -> torch.Tensor:
        return matrix_NK.reshape(-1, width // size, size).permute(2, 1, 0)

    importance = None if importance_K is None else laid_out(importance_K.float().expand(rows, -1))
    blocks, grid = Blocks.of(laid_out(weight_NK), importance, room), grid_of(args)
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

        def chosen(own: torch.Tensor | None, others: torch.Tensor | None) -> torch.Tensor | None:
            if own is others or own is None or others is None:
                return own
            return torch.where(chosen_B, own, others)

        unit, scale = chosen(self.unit, other.unit), chosen(self.scale, other.scale)
        if unit is None or scale is None:
            return _Levels(torch.where(chosen_B, self.step, other.step), chosen(self.floor, other.floor))
        return _scaled(unit, scale, chosen(self.floor_unit, other.floor_unit), chosen(self.minimum, other.minimum))


def _levels(blocks: Blocks, grid: Grid, args: QuantArgs, searched: bool) -> _Levels:
    below_zero = args.scale_type == "super"
    plain = plain_fit(blocks, grid, below_zero=None if args.symmetric else below_zero)
    found = _plain_levels(plain, args)
    if not searched:
        return found
    tried = blocks.at(grid, *_lines(plain, found, args))
    sums = tried.of_best(below_zero=below_zero)
    levels = _fitted(sums, _sound(sums.best(below_zero=below_zero), found), args)
    if levels.floor is None:
        gains = [tried.line(0).gain(found.step, None).sum(0), sums.gain(levels.step, None).sum(0)]
        # It gains more yet, once the codes follow. By less than sums in float32 can tell, nothing is gained.
        return levels.where(gains[1] > gains[0] * (1 + NOISE), found)
    # A second round takes 0.4 to 0.7 % off the error of lines with a floor, next to nothing off that of others.
    sums = blocks.at(grid, levels.step.unsqueeze(0), levels.floor.unsqueeze(0)).line(0)
    levels = _fitted(sums, _sound(sums.best(below_zero=below_zero), levels), args)
    errors = [blocks.error(grid, one.step, one.floor).sum(0) for one in (found, levels)]
    return levels.where(errors[1] < errors[0], found)


def _lines(plain: Fit, found: _Levels, args: QuantArgs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Steps and floors [F, S, B] whose codes are tried: the plain ones as stored, then multiples of the plain step."""
    factors = factors_of(args)
    factors_F11 = plain.step.new_tensor(factors)[:, None, None]
    step_FSB = torch.cat([found.step.unsqueeze(0), plain.step * factors_F11])
    if plain.floor is None or found.floor is None:
        return step_FSB, None
    return step_FSB, torch.cat([found.floor.unsqueeze(0), plain.floor.expand(len(factors), -1, -1)])


def _sound(fit: Fit, levels: _Levels) -> Fit:
    """The stored line where the codes do not determine one."""
    is_sound = fit.gain.abs() < torch.inf
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
    ends_C1 = torch.arange(low - 1, low + 3.0, device=fit.step.device).unsqueeze(1)
    unit_1CB = _stored(_peak(fit.step) / ends_C1).unsqueeze(0)
    step_SCB = (fit.step.unsqueeze(1) / unit_1CB).round_().clamp_(low, high).mul_(unit_1CB)
    product_S1B, square_S1B = sums.product.unsqueeze(1), sums.square.unsqueeze(1)
    gain_CB = torch.addcmul(2 * product_S1B, step_SCB, square_S1B, value=-1).mul_(step_SCB).sum(0)
    unit = unit_1CB[0].gather(0, gain_CB.max(0, keepdim=True).indices)
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
    best_1B = gain_DCB.flatten(0, 1).max(0, keepdim=True).indices
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
    codes = ratio.nan_to_num_(0.0).round().clamp_(low, high)
    return codes if args.type == "iq" else codes.abs_().clamp_(min=1).copysign_(ratio)


def _peak(step: torch.Tensor) -> torch.Tensor:
    """The step of the largest magnitude in each super-block, [1, B]."""
    low, high = step.amin(0, keepdim=True), step.amax(0, keepdim=True)
    return torch.where(high > -low, high, low)
