"""Blocks of weights as points of a line, w = step * c + floor for codes c: the sums of least squares, and the best fit.

Shapes: V values of a block come first, so that sums run over whole vectors of blocks: values [V, S, B] are S blocks of
each of B super-blocks (S = 1 where there are none). What belongs to a block is [S, B], to a super-block [B]. Errors
are weighted by the importance of inputs. A *gain* is what a fit takes off the error of all zeros: larger is better.
"""

from math import prod
from typing import NamedTuple

import torch

from optcore.algorithms.rounding import Grid

_LARGEST = torch.finfo(torch.float32).max


class Room:
    """Memory that parts of a weight use one after the other: fresh pages cost more than the sums taken there."""

    def __init__(self, values: int, device: torch.device) -> None:
        """For Blocks of so many values."""
        self._flat = torch.empty(5, values, device=device)

    def tensors(self, shape: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
        """Five [V, S, B] of uninitialised float32; in memory [S, V, B], so that a weight is one matrix transposed."""
        values, blocks, supers = shape
        return self._flat[:, : prod(shape)].unflatten(1, (blocks, values, supers)).transpose(1, 2).unbind()


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
    codes: torch.Tensor
    products: torch.Tensor
    """Scratch [V, S, B], and so are the codes."""

    @classmethod
    def of(cls, values: torch.Tensor, importance: torch.Tensor | None, room: Room) -> "Blocks":
        """Of views that are copied, with the sums taken. Blocks share the room: only the latest ones are to be used."""
        own, counted, weighted, codes, products = room.tensors(values.shape)
        _copy(values, own)
        if importance is None:
            return cls(own, None, own, own.new_tensor(len(own)), own.sum(0), codes, products)
        _copy(importance, counted)
        torch.mul(own, counted, out=weighted)
        return cls(own, counted, weighted, counted.sum(0), weighted.sum(0), codes, products)

    def error(self, grid: Grid, step: torch.Tensor, floor: torch.Tensor | None) -> torch.Tensor:
        """At the nearest codes [S, B], from the differences: beside a large floor that of sums is rounding."""
        inverse = step.reciprocal().clamp_(-_LARGEST, _LARGEST)
        codes = self._rounded(grid, inverse, None if floor is None else floor.mul(inverse).neg_())
        error = torch.addcmul(self.values, codes, step, value=-1, out=self.products)
        error = (error if floor is None else error.sub_(floor)).square_()
        return (error if self.importance is None else error.mul_(self.importance)).sum(0)

    def at(self, grid: Grid, step_FSB: torch.Tensor, floor_FSB: torch.Tensor | None) -> "Sums":
        """The sums [F, S, B] at the codes nearest to each of F lines."""
        # Times the zeros of a step of zero this is zero, not NaN.
        inverse_FSB = step_FSB.reciprocal().clamp_(-_LARGEST, _LARGEST)
        start_FSB = None if floor_FSB is None else floor_FSB.mul(inverse_FSB).neg_()
        square, product, code = step_FSB.new_empty(3, *step_FSB.shape)
        for line, inverse in enumerate(inverse_FSB):
            codes = self._rounded(grid, inverse, None if start_FSB is None else start_FSB[line])
            torch.sum(torch.mul(codes, self.weighted, out=self.products), 0, out=product[line])
            counted = codes if self.importance is None else torch.mul(codes, self.importance, out=self.products)
            if floor_FSB is not None:
                torch.sum(counted, 0, out=code[line])
            torch.sum(codes.mul_(counted), 0, out=square[line])
        return Sums(square, product, None if floor_FSB is None else code, self)

    def _rounded(self, grid: Grid, inverse_SB: torch.Tensor, start_SB: torch.Tensor | None) -> torch.Tensor:
        if start_SB is None:
            torch.mul(self.values, inverse_SB, out=self.codes)
        else:
            torch.addcmul(start_SB, self.values, inverse_SB, out=self.codes)
        return grid.round(self.codes) if grid.range is None else self.codes.round_().clamp_(*grid.range)


class Sums(NamedTuple):
    """Weighted sums over each block, [S, B], of F lines [F, S, B]: all that its error depends on while codes stay."""

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

    def of_best(self, *, below_zero: bool) -> "Sums":
        """Of F sums, block by block those through whose codes the best least-squares line goes."""
        # No line where all codes are alike. Not argmax, which takes longer than all the sums.
        gain_FSB = self.best(below_zero=below_zero).gain.nan_to_num_(nan=-torch.inf)
        best_1SB = gain_FSB.max(0, keepdim=True).indices
        square, product = self.square.gather(0, best_1SB)[0], self.product.gather(0, best_1SB)[0]
        return Sums(square, product, None if self.code is None else self.code.gather(0, best_1SB)[0], self.blocks)

    def line(self, index: int) -> "Sums":
        """One of F."""
        return Sums(
            self.square[index], self.product[index], None if self.code is None else self.code[index], self.blocks
        )

    def floor_at(self, step: torch.Tensor) -> torch.Tensor:
        """The best floor for a step."""
        assert self.code is not None
        return (self.blocks.total - step * self.code) / self.blocks.mass


class Fit(NamedTuple):
    """A line through the codes of each block."""

    step: torch.Tensor
    floor: torch.Tensor | None
    gain: torch.Tensor


def _copy(source: torch.Tensor, into: torch.Tensor) -> None:
    """In two dimensions, which torch transposes fastest."""
    into.transpose(0, 1).flatten(0, 1).copy_(source.transpose(0, 1).flatten(0, 1))


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
