"""Rounding column after column, each aware of what rounding the others cost: one pass, in blocks.

Everything is transposed, [K, N]: a column of the weight is a contiguous row, and the N outputs are independent. Column
k becomes the lattice value nearest to t_k + sum over i of C_ki d_i, where d = t - q. With C_ki = V_ik / V_kk below the
diagonal the pass is GPTQ; with C_ki = H_ki / H_kk off it, a sweep of coordinate descent (CDQuant, arXiv:2406.17542).

The sum is taken late and at two levels: one matrix product brings in all that was known before a block of columns, one
what changed in the block before a strip of it; only within a strip is there a product per column.
"""

import torch

from optcore.algorithms.lattice import Lattice
from optcore.kernels.descent import BLOCK_columns, round_block


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
    for start in range(0, columns, BLOCK_columns):
        block = slice(start, min(start + BLOCK_columns, columns))
        heard = slice(0, block.start if causal else columns)
        asked_KN = _plus(target_KN[..., block, :], weights_KK[..., block, heard], difference_KN[..., heard, :])
        own_KN = difference_KN[..., block, :]
        change_KN = own_KN.zero_() if causal else torch.zeros_like(own_KN)
        weights_BB, points_BN = weights_KK[..., block, block], _rows(lattice_KN, block)
        round_block(asked_KN, rounded_KN[..., block, :], change_KN, weights_BB, points_BN)
        if not causal:
            own_KN += change_KN


def _plus(base: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.addmm(base, left, right) if base.ndim == 2 else torch.baddbmm(base, left, right)


def _rows(lattice_KN: Lattice, rows: slice) -> Lattice:
    step_KN, zero_KN, grid, offset_KN = lattice_KN
    zero, offset = [None if matrix is None else matrix[..., rows, :] for matrix in (zero_KN, offset_KN)]
    return Lattice(step_KN[..., rows, :], zero, grid, offset)
