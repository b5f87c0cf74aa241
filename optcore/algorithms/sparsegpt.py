"""SparseGPT (arXiv:2301.00774): weights that go are made up for by those after them in their row.

Shapes: W [N, K], H = X^T X / tokens [K, K]. With H = V V^T, V upper triangular, removing the weight that column k has
come to costs (V_kk w_k)^2: the paper's w^2 / [H^-1]_kk, because V is the inverse of its Cholesky factor of H^-1. What
the earlier columns' differences add to column k is `feedback` of `algorithms/factor.py`.
"""

import torch

from optcore.algorithms.factor import factor_columns, feedback_of, revived
from optcore.algorithms.sparsity import Budget, kept


def sparsegpt(
    weight_NK: torch.Tensor, gram_KK: torch.Tensor, budget: Budget, *, damping: float = 0.01, block: int = 128
) -> torch.Tensor | None:
    """The sparse weight, float32. None where H cannot be factored at any damping.

    `damping` is added to H's diagonal as a share of its mean. Without groups, each `block` of columns loses the
    budget's share; with groups, a group's mask is chosen when its turn comes.
    """
    gram_KK = gram_KK.float()
    columns_1KK, (taken,) = factor_columns(revived(gram_KK.unsqueeze(0)), damping)
    if taken is None:
        return None
    costs_K = columns_1KK[0].diagonal().square() * (gram_KK.diagonal() > 0)  # what never occurred costs nothing
    sweep = _Sweep(weight_NK.float().mT.contiguous(), feedback_of(columns_1KK)[0], costs_K, budget)
    width = block // budget.group[1] * budget.group[1] if budget.group else block
    for start in range(0, len(costs_K), width):
        sweep.go(start, min(start + width, len(costs_K)))
    return sweep.sparse_KN.mT.contiguous()


class _Sweep:
    """Goes through the columns once; matrices are transposed, so that a column lies in one piece."""

    def __init__(
        self, weight_KN: torch.Tensor, feedback_KK: torch.Tensor, costs_K: torch.Tensor, budget: Budget
    ) -> None:
        self.sparse_KN = torch.zeros_like(weight_KN)
        self._weight_KN = weight_KN
        self._difference_KN = torch.zeros_like(weight_KN)
        self._feedback_KK = feedback_KK
        self._costs_K = costs_K
        self._budget = budget

    def go(self, start: int, end: int) -> None:
        """Sparsify the columns of a block."""
        early_BN = self._feedback_KK[start:end, :start] @ self._difference_KN[:start]
        step = self._budget.group[1] if self._budget.group else end - start
        for first in range(start, end, step):
            early_PN = early_BN[first - start :][:step] + self._within(start, first, first, first + step)
            for k, keep_N in enumerate(self._mask(first, early_PN), start=first):
                moved_N = early_BN[k - start] + self._within(start, k, k, k + 1)[0]
                self.sparse_KN[k] = (self._weight_KN[k] + moved_N) * keep_N
                self._difference_KN[k] = self._weight_KN[k] - self.sparse_KN[k]

    def _within(self, start: int, known: int, first: int, end: int) -> torch.Tensor:
        """What the block's columns before `known` add to the columns from `first` to `end`."""
        return self._feedback_KK[first:end, start:known] @ self._difference_KN[start:known]

    def _mask(self, first: int, early_PN: torch.Tensor) -> torch.Tensor:
        """By what the columns come to if none of them goes: each one's own move then moves those after it, too."""
        end = first + len(early_PN)
        own_PP = self._feedback_KK[first:end, first:end]
        moved_PN = torch.linalg.solve_triangular(own_PP, early_PN, upper=False, unitriangular=True)
        cost_PN = (self._weight_KN[first:end] + moved_PN).square() * self._costs_K[first:end, None]
        return kept(cost_PN.mT, self._budget).mT
