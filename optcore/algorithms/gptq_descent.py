"""Rounding column after column, each aware of what rounding the others cost: one pass, in blocks.

Everything is transposed, [K, N]: a column of the weight is a contiguous row, and the N outputs are independent. Column
k becomes the lattice value nearest to `t_k + sum over i of C_ki d_i`, d = t - q. With C = V_ik / V_kk below the diagonal
the pass is GPTQ; with C = H_ki / H_kk off the diagonal it is a sweep of coordinate descent (CDQuant, arXiv:2406.17542).

The sum is taken late and at two levels: one matrix product brings in all that was known before a block of `BLOCK`
columns, one what changed in the block before a strip of `STRIP`; only in a strip is there a product per column.
"""

from collections.abc import Iterator

import torch

from optcore.algorithms.lattice import Lattice

BLOCK_columns = 128
STRIP_columns = 16


def descend(
    target_KN: torch.Tensor, rounded_KN: torch.Tensor, weights_KK: torch.Tensor, lattice_KN: Lattice, causal: bool
) -> None:
    """Round every column once, in order, and write the result into `rounded_KN`. All may lead with experts [E].

    `causal`: a column hears of earlier ones only; C is strictly lower and `rounded_KN` is the target at first.
    """
    if target_KN.ndim == 3 and len(target_KN) == 1:
        points = Lattice(*(part[0] if isinstance(part, torch.Tensor) else part for part in lattice_KN))
        return descend(target_KN[0], rounded_KN[0], weights_KK[0], points, causal)
    columns = target_KN.shape[-2]
    difference_KN = target_KN - rounded_KN
    for block in _spans(0, columns, BLOCK_columns):
        heard = slice(0, block.start if causal else columns)
        asked_KN = _plus(target_KN[..., block, :], weights_KK[..., block, heard], difference_KN[..., heard, :])
        before_KN, lattice_block = rounded_KN[..., block, :], _rows(lattice_KN, block)
        change_KN = _round_block(asked_KN, before_KN, weights_KK[..., block, block], lattice_block)
        # A difference of two lattice values is rounded; the value itself is exact.
        torch.sub(before_KN, change_KN, out=asked_KN)
        before_KN.copy_(lattice_block.nearest(asked_KN))
        torch.sub(target_KN[..., block, :], before_KN, out=difference_KN[..., block, :])


def _round_block(
    asked_KN: torch.Tensor, before_KN: torch.Tensor, weights_KK: torch.Tensor, lattice_KN: Lattice
) -> torch.Tensor:
    """What rounding adds to the differences of a block's columns: the value before less the value after."""
    change_KN = torch.zeros_like(asked_KN)
    for strip in _spans(0, asked_KN.shape[-2], STRIP_columns):
        earlier_KN = change_KN[..., : strip.start, :]
        _round_strip(
            _plus(asked_KN[..., strip, :], weights_KK[..., strip, : strip.start], earlier_KN),
            before_KN[..., strip, :],
            weights_KK[..., strip, strip].tril(-1),
            _rows(lattice_KN, strip),
            change_KN[..., strip, :],
        )
    return change_KN


def _round_strip(
    asked_KN: torch.Tensor,
    before_KN: torch.Tensor,
    weights_KK: torch.Tensor,
    lattice_KN: Lattice,
    change_KN: torch.Tensor,
) -> None:
    """`weights_KK` is strictly lower and `change_KN` zero, so a product with all of it is one with what is done."""
    absorb = _absorb if asked_KN.ndim == 2 else _absorb_experts
    each = (tensor.unbind(-2) for tensor in (asked_KN, before_KN, weights_KK, change_KN))
    for (asked_N, before_N, weights_K, change_N), lattice_N in zip(zip(*each), _each_row(lattice_KN)):
        absorb(asked_N, weights_K, change_KN)
        torch.sub(before_N, lattice_N.nearest(asked_N), out=change_N)


def _absorb(asked_N: torch.Tensor, weights_K: torch.Tensor, change_KN: torch.Tensor) -> None:
    asked_N.addmv_(change_KN.t(), weights_K)


def _absorb_experts(asked_EN: torch.Tensor, weights_EK: torch.Tensor, change_EKN: torch.Tensor) -> None:
    asked_EN += (weights_EK.unsqueeze(-2) @ change_EKN).squeeze(-2)


def _plus(base: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.addmm(base, left, right) if base.ndim == 2 else torch.baddbmm(base, left, right)


def _spans(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _rows(lattice_KN: Lattice, rows: slice) -> Lattice:
    zero = lattice_KN.zero_NK
    cut = None if zero is None else zero[..., rows, :]
    return lattice_KN._replace(step_NK=lattice_KN.step_NK[..., rows, :], zero_NK=cut)


def _each_row(lattice_KN: Lattice) -> Iterator[Lattice]:
    steps, zero = lattice_KN.step_NK.unbind(-2), lattice_KN.zero_NK
    zeros = [None] * len(steps) if zero is None else zero.unbind(-2)
    return (lattice_KN._replace(step_NK=step_N, zero_NK=zero_N) for step_N, zero_N in zip(steps, zeros, strict=True))
