"""Rounding column after column, each aware of what rounding the others cost: one pass, in blocks.

Everything is transposed, [K, N]: a column of the weight is a contiguous row, and the N outputs are independent. Column
k becomes the lattice value nearest to t_k + sum over i of C_ki d_i, where d = t - q. With C_ki = V_ik / V_kk below the
diagonal the pass is GPTQ; with C_ki = H_ki / H_kk off it, a sweep of coordinate descent (CDQuant, arXiv:2406.17542).

The sum is taken late and at two levels: one matrix product brings in all that was known before a block of columns, one
what changed in the block before a strip of it; only within a strip is there a product per column.
"""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import NamedTuple

import torch

from optcore.algorithms.lattice import Lattice
from optcore.algorithms.rounding import Grid

BLOCK_columns = 128
STRIP_columns = 16


def descend(
    target_KN: torch.Tensor, rounded_KN: torch.Tensor, weights_KK: torch.Tensor, lattice_KN: Lattice, causal: bool
) -> None:
    """Round every column once, in order, and write the result into `rounded_KN`. All may lead with experts [E].

    `causal`: a column hears of earlier ones only; C is strictly lower and `rounded_KN` is the target at first.
    """
    if target_KN.ndim == 3 and len(target_KN) == 1:  # the plain products of one matrix start faster
        step_EKN, zero_EKN, grid, offset_EKN = lattice_KN
        first = [None if matrix is None else matrix[0] for matrix in (zero_EKN, offset_EKN)]
        points = Lattice(step_EKN[0], first[0], grid, first[1])
        return descend(target_KN[0], rounded_KN[0], weights_KK[0], points, causal)
    columns = target_KN.shape[-2]
    difference_KN = torch.empty_like(target_KN) if causal else target_KN - rounded_KN
    for block in _spans(0, columns, BLOCK_columns):
        heard = slice(0, block.start if causal else columns)
        asked_KN = _plus(target_KN[..., block, :], weights_KK[..., block, heard], difference_KN[..., heard, :])
        own_KN = difference_KN[..., block, :]
        change_KN = own_KN.zero_() if causal else torch.zeros_like(own_KN)
        _round_block(
            _Part(asked_KN, rounded_KN[..., block, :], change_KN, *_rows(lattice_KN, block)),
            weights_KK[..., block, block],
            lattice_KN.grid,
        )
        if not causal:
            own_KN += change_KN


class _Part(NamedTuple):
    """Rows in rounding: a block, a strip of it, or one column."""

    asked: torch.Tensor
    """What the column would best be; used up."""
    rounded: torch.Tensor
    """What it was, then what it is rounded to."""
    change: torch.Tensor
    """The one less the other, which is what rounding adds to the difference. Zero before."""
    step: torch.Tensor
    zero: torch.Tensor | None
    offset: torch.Tensor | None

    def rows(self, rows: slice) -> "_Part":
        return _Part(*(None if matrix is None else matrix[..., rows, :] for matrix in self))

    def columns(self) -> "Iterator[_Part]":
        each = (repeat(None) if matrix is None else matrix.unbind(-2) for matrix in self)
        return map(_Part, *each)


def _round_block(block: _Part, weights_KK: torch.Tensor, grid: Grid) -> None:
    for rows in _spans(0, block.asked.shape[-2], STRIP_columns):
        strip, earlier = block.rows(rows), slice(0, rows.start)
        _add_product(strip.asked, weights_KK[..., rows, earlier], block.change[..., earlier, :])
        _round_strip(strip, weights_KK[..., rows, rows].tril(-1), grid)


def _round_strip(strip: _Part, weights_KK: torch.Tensor, grid: Grid) -> None:
    """`weights_KK` is strictly lower and changes to come are zero: a product with all of them is one with the done."""
    absorb = _absorb if strip.asked.ndim == 2 else _absorb_experts
    in_grid, changes_NK = _rounding(grid), strip.change.mT
    for column, weights_K in zip(strip.columns(), weights_KK.unbind(-2), strict=True):
        asked_N, rounded_N, change_N, step_N, zero_N, offset_N = column
        absorb(asked_N, changes_NK, weights_K)
        if offset_N is not None:
            asked_N -= offset_N
            rounded_N -= offset_N
        asked_N /= step_N
        values_N = in_grid(asked_N) if zero_N is None else in_grid(asked_N.add_(zero_N)).sub_(zero_N)
        torch.addcmul(rounded_N, values_N, step_N, value=-1, out=change_N)
        torch.mul(values_N, step_N, out=rounded_N)
        if offset_N is not None:
            rounded_N += offset_N


def _rounding(grid: Grid) -> Callable[[torch.Tensor], torch.Tensor]:
    """The grid's rounding, in place where the grid allows: most of the time goes into starting small operations."""
    if grid.range is None:
        return grid.round
    low, high = grid.range
    return lambda values: values.round_().clamp_(low, high)


def _absorb(asked_N: torch.Tensor, changes_NK: torch.Tensor, weights_K: torch.Tensor) -> None:
    asked_N.addmv_(changes_NK, weights_K)


def _absorb_experts(asked_EN: torch.Tensor, changes_ENK: torch.Tensor, weights_EK: torch.Tensor) -> None:
    asked_EN += (changes_ENK @ weights_EK.unsqueeze(-1)).squeeze(-1)


def _plus(base: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.addmm(base, left, right) if base.ndim == 2 else torch.baddbmm(base, left, right)


def _add_product(base: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.shape[-1]:
        base.addmm_(left, right) if base.ndim == 2 else base.baddbmm_(left, right)


def _spans(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _rows(lattice_KN: Lattice, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    step_KN, zero_KN, _, offset_KN = lattice_KN
    others = [None if matrix is None else matrix[..., rows, :] for matrix in (zero_KN, offset_KN)]
    return step_KN[..., rows, :], others[0], others[1]
