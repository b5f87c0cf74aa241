"""What the rounding error of one input column costs the others: factors of the Hessian of a layer's output.

For D = T - Q, the difference between the target and the rounded weight, the loss is tr(D H D^T). With H = V V^T, V
upper triangular, it is the sum over columns k of |(D V)_k|^2, and (D V)_k holds no column after k. So rounding the
columns from first to last, each to the value nearest to t_k + sum over i < k of d_i V_ik / V_kk, is GPTQ
(arXiv:2210.17323), here as Babai's nearest plane (arXiv:2507.18553): one Cholesky factor, K^3 / 3 FLOP, no inverse.
"""

import torch

# Multiples of the asked damping that are tried before the whole mean diagonal.
_RUNGS = (1, 5, 10, 50)
_SMALL_columns = 1024


def revived(gram_EKK: torch.Tensor) -> torch.Tensor:
    """H with the mean of the live diagonal in place of zeros (1 where all are zero): an input that never occurred ties
    no other column, and can now be divided by."""
    diagonal_EK = gram_EKK.diagonal(dim1=-2, dim2=-1)
    dead_EK = diagonal_EK == 0
    mean_E1 = diagonal_EK.sum(-1, keepdim=True) / (~dead_EK).sum(-1, keepdim=True).clamp(min=1)
    filling_EK = torch.where(mean_E1 > 0, mean_E1, torch.ones_like(mean_E1)) * dead_EK
    return gram_EKK + torch.diag_embed(filling_EK)


def damped(gram_EKK: torch.Tensor, share: float) -> torch.Tensor:
    """H + share * mean(diag H) * I."""
    mean_E1 = gram_EKK.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return gram_EKK + torch.diag_embed((share * mean_E1).expand(gram_EKK.shape[:-1]))


def ladder(damping: float) -> list[float]:
    """Dampings to try, from the asked one to 1."""
    return [*(damping * rung for rung in _RUNGS if damping * rung < 1), 1.0]


def factored(gram_EKK: torch.Tensor, damping: float) -> tuple[torch.Tensor, list[float | None]]:
    """Feedback [E, K, K] of every H, and the damping that it took; None, and zeros, where none made it a Gram matrix.

    Feedback is strictly lower triangular: row k holds V_ik / V_kk, the weight of the earlier columns' differences in
    column k.
    """
    columns_EKK, taken = factor_columns(gram_EKK, damping)
    return feedback_of(columns_EKK), taken


def factor_columns(gram_EKK: torch.Tensor, damping: float) -> tuple[torch.Tensor, list[float | None]]:
    """V^T [E, K, K] of every H, lower triangular (row k holds V_ik), and the damping that it took; None, and zeros,
    where none made it a Gram matrix."""
    experts = len(gram_EKK)
    taken: list[float | None] = [None] * experts
    columns_EKK = torch.zeros_like(gram_EKK)
    diagonal_EK = gram_EKK.diagonal(dim1=-2, dim2=-1)
    sane_E = gram_EKK.isfinite().all(-1).all(-1) & (diagonal_EK >= 0).all(-1)
    waiting = list(range(experts))
    for share in ladder(damping):
        if not waiting:
            break
        # V = J L J for J H J = L L^T, J the reversal of the columns: an upper factor without an inverse.
        lower_EKK, failure_E = _cholesky(damped(gram_EKK[among(waiting, experts)], share).flip(-1, -2))
        tried_E = sane_E[among(waiting, experts)]
        good_E = tried_E & (failure_E == 0) & lower_EKK.isfinite().all(-1).all(-1)
        # The one time that an attempt waits for the device. What is not sane is not tried again.
        verdicts = torch.stack([good_E, tried_E & ~good_E]).tolist()
        good, again = ([place for place, is_so in enumerate(row) if is_so] for row in verdicts)
        done = [waiting[place] for place in good]
        columns_EKK[among(done, experts)] = lower_EKK[among(good, len(waiting))].flip(-1, -2).mT
        for expert in done:
            taken[expert] = share
        waiting = [waiting[place] for place in again]
    return columns_EKK, taken


def _cholesky(matrix_EKK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower factors, and what is not 0 where there is none; large matrices one by one, which nobody waits for either:
    cuSOLVER's batched form, that torch takes for several on a GPU, is made for small ones."""
    if len(matrix_EKK) == 1 or matrix_EKK.shape[-1] <= _SMALL_columns:
        lower_EKK, failure_E = torch.linalg.cholesky_ex(matrix_EKK)
        return lower_EKK, failure_E
    lowers, failures = zip(*map(torch.linalg.cholesky_ex, matrix_EKK), strict=True)
    return torch.stack(lowers), torch.stack(failures)


def among(chosen: list[int], count: int) -> list[int] | slice:
    """An index of some of `count`. All of them are a slice: a list is copied to the device, which waits for it."""
    return slice(None) if len(chosen) == count else chosen


def feedback_of(columns_EKK: torch.Tensor) -> torch.Tensor:
    """Feedback of V^T, in its place; zeros stay zeros."""
    diagonal_EK = columns_EKK.diagonal(dim1=-2, dim2=-1).clone()
    diagonal_EK[diagonal_EK == 0] = 1  # of an H that could not be factored
    return columns_EKK.div_(diagonal_EK.unsqueeze(-1)).tril_(-1)


def coupling(gram_EKK: torch.Tensor) -> torch.Tensor:
    """Row k holds H_ki / H_kk off the diagonal: with every other column fixed, the best t_k moves by it (a quadratic's
    minimum along one coordinate)."""
    rows_EKK = gram_EKK / gram_EKK.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    rows_EKK.diagonal(dim1=-2, dim2=-1).zero_()
    return rows_EKK
