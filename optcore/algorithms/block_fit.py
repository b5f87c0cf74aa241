"""Blocks of weights as points of a line, w = step * c + floor for codes c: the sums of least squares, and the best fit.

Shapes: V values of a block come first, so that sums run over whole vectors of blocks: values [V, S, B] are S blocks of
each of B super-blocks (S = 1 where there are none). What belongs to a block is [S, B], to a super-block [B]. Errors
are weighted by the importance of inputs. A *gain* is what a fit takes off the error of all zeros: larger is better.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from optcore.algorithms.rounding import Grid


class Blocks(NamedTuple):
    """Weights, laid out for sums over blocks, and what their sums have in common whatever the codes."""

    values: torch.Tensor
    importance: torch.Tensor | None
    weighted: torch.Tensor
    """Importance times values [V, S, B]."""
    mass: torch.Tensor
    """Sum of the importance, [S, B] or [] where all count alike."""
    total: torch.Tensor
    """Sum of `weighted` [S, B]."""

    @classmethod
    def of(cls, values: torch.Tensor, importance: torch.Tensor | None) -> "Blocks":
        """With the sums taken."""
        weighted = values if importance is None else values * importance
        mass = values.new_tensor(len(values)) if importance is None else importance.sum(0)
        return cls(values, importance, weighted, mass, weighted.sum(0))

    def at(self, grid: Grid, step: torch.Tensor, floor: torch.Tensor | None) -> "Sums":
        """The sums at the nearest codes."""
        return self._sums(self._codes(grid, step, floor), is_affine=floor is not None)

    def judged(self, grid: Grid, step: torch.Tensor, floor: torch.Tensor | None) -> "tuple[Sums, torch.Tensor]":
        """The sums at the nearest codes, and the error there [S, B]: taken from the differences, since that of 8 bits
        is a rounding error of float32 beside the sums."""
        codes = self._codes(grid, step, floor)
        error = torch.addcmul(self.values, codes, step, value=-1)
        error = (error if floor is None else error.sub_(floor)).square_()
        error = (error if self.importance is None else error.mul_(self.importance)).sum(0)
        return self._sums(codes, is_affine=floor is not None), error

    def _codes(self, grid: Grid, step: torch.Tensor, floor: torch.Tensor | None) -> torch.Tensor:
        inverse = torch.where(step == 0, 1, step).reciprocal()
        codes = self.values * inverse if floor is None else (self.values - floor).mul_(inverse)
        return grid.round(codes) if grid.range is None else codes.round_().clamp_(*grid.range)

    def _sums(self, codes: torch.Tensor, *, is_affine: bool) -> "Sums":
        """Uses the codes up."""
        first = (codes * self.weighted).sum(0)
        if self.importance is None:
            mean = codes.sum(0) if is_affine else None
            return Sums(codes.square_().sum(0), first, mean, self)
        counted = codes * self.importance
        mean = counted.sum(0) if is_affine else None
        return Sums(codes.mul_(counted).sum(0), first, mean, self)


class Sums(NamedTuple):
    """Weighted sums over each block, [S, B]: all that its error depends on while codes stay."""

    square: torch.Tensor
    """Of c^2."""
    product: torch.Tensor
    """Of c w."""
    code: torch.Tensor | None
    """Of c, where there is a floor."""
    blocks: Blocks

    def gain(self, step: torch.Tensor, floor: torch.Tensor | None) -> torch.Tensor:
        """Of a step, and a floor where the format has one."""
        gain = step * (2 * self.product - step * self.square)
        if floor is None or self.code is None:
            return gain
        return gain + floor * (2 * (self.blocks.total - step * self.code) - floor * self.blocks.mass)

    def best(self, *, below_zero: bool) -> "Fit":
        """Least squares; `below_zero`: of floors that are not positive. NaN where all codes are alike."""
        if self.code is None:
            step = self.product / self.square
            return Fit(step, None, step * self.product)
        total, mass = self.blocks.total, self.blocks.mass
        step = (mass * self.product - self.code * total) / (mass * self.square - self.code.square())
        floor = (total - step * self.code) / mass
        if below_zero:
            step = torch.where(floor > 0, self.product / self.square, step)
            floor = floor.clamp(max=0)
        return Fit(step, floor, self.gain(step, floor))

    def floor_at(self, step: torch.Tensor) -> torch.Tensor:
        """The best floor for a step."""
        assert self.code is not None
        return (self.blocks.total - step * self.code) / self.blocks.mass


class Fit(NamedTuple):
    """A line through the codes of each block."""

    step: torch.Tensor
    floor: torch.Tensor | None
    gain: torch.Tensor


def plain_fit(blocks: Blocks, grid: Grid, *, below_zero: bool | None) -> Fit:
    """The line whose ends are a block's: codes 0 and the last at its smallest and largest value, or without a floor
    (`below_zero` None) the lowest grid value, which has no positive twin, at the largest magnitude, whatever its sign.
    With 8 bits that code is worth nothing, and ggml leaves it out.
    """
    low, high = blocks.values.amin(0), blocks.values.amax(0)
    if below_zero is None:
        eight_bits, floor = grid.range == (-128, 127), None
        step = torch.maximum(-low, high) / 127 if eight_bits else torch.where(high > -low, high, low) / grid.ends[0]
    else:
        floor = low.clamp(max=0) if below_zero else low
        step = (high - floor) / grid.ends[1]
    return Fit(step, floor, torch.full_like(step, -torch.inf))


def searched_sums(blocks: Blocks, grid: Grid, plain: Fit, factors: Sequence[float], *, below_zero: bool) -> Sums:
    """Through the codes of that multiple of the plain step by which the best least-squares line goes."""
    tried = [blocks.at(grid, plain.step * factor, plain.floor) for factor in factors]
    square, product = torch.stack([one.square for one in tried]), torch.stack([one.product for one in tried])
    code = torch.stack([one.code for one in tried if one.code is not None]) if plain.floor is not None else None
    together = Sums(square, product, code, blocks)  # [F, S, B]: starting small operations costs as much as the sums
    factor = plain.step.new_tensor(factors)[together.best(below_zero=below_zero).gain.argmax(0)]
    return blocks.at(grid, plain.step * factor, plain.floor)
