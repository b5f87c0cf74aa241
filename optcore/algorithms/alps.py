"""ALPS (arXiv:2406.07831): the sparse weight whose output is nearest, by ADMM for the support, then CG for the values.

Shapes: W [N, K], H = X^T X / tokens [K, K], damped. Minimized is tr((W - S) H (W - S)^T) over S within the budget. All
is done in inputs scaled so that H has ones on its diagonal, which is also CG's Jacobi preconditioner.
"""

import torch

from optcore.algorithms.factor import damped, revived
from optcore.algorithms.sparsity import Budget, kept

_FIRST_rho = 0.1
_EVERY_steps = 3
_MOST_steps = 300
_SOLVE_steps = 20
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Share of the support that changed, and what rho is then multiplied by (the paper's section 3.2)."""


def alps(
    weight_NK: torch.Tensor, gram_KK: torch.Tensor, budget: Budget, *, damping: float = 0.01
) -> torch.Tensor | None:
    """The sparse weight, float32. None where H is not finite."""
    if not gram_KK.isfinite().all():
        return None
    firm_KK = damped(revived(gram_KK.float().unsqueeze(0)), damping)[0]
    scale_K = firm_KK.diagonal().sqrt()
    unit_KK = firm_KK / (scale_K[:, None] * scale_K)
    scaled_NK = weight_NK.float() * scale_K
    sparse_NK = _supported(scaled_NK, unit_KK, budget)
    return _solved(sparse_NK, scaled_NK, unit_KK) / scale_K


def _supported(weight_NK: torch.Tensor, gram_KK: torch.Tensor, budget: Budget) -> torch.Tensor:
    """ADMM with rising rho until the support stays (algorithm 1)."""
    values_K, vectors_KK = torch.linalg.eigh(gram_KK)
    pull_NK = weight_NK @ gram_KK
    sparse_NK, dual_NK = weight_NK, torch.zeros_like(weight_NK)
    rho, before_NK = _FIRST_rho, kept(weight_NK.abs(), budget)
    for step in range(1, _MOST_steps + 1):
        right_NK = pull_NK - dual_NK + rho * sparse_NK
        dense_NK = (right_NK @ vectors_KK / (values_K + rho)) @ vectors_KK.mT
        moved_NK = dense_NK + dual_NK / rho
        mask_NK = kept(moved_NK.abs(), budget)
        sparse_NK = moved_NK * mask_NK
        dual_NK = dual_NK + rho * (dense_NK - sparse_NK)
        if step % _EVERY_steps == 0:
            changed = int((mask_NK != before_NK).sum())
            if not changed:
                break
            before_NK = mask_NK
            share = changed / max(int(mask_NK.sum()), 1)
            rho *= next(growth for least, growth in _GROWTH if share >= least)
    return sparse_NK


def _solved(sparse_NK: torch.Tensor, weight_NK: torch.Tensor, gram_KK: torch.Tensor) -> torch.Tensor:
    """Conjugate gradients on the support, each row a system of its own (algorithm 2): the loss only falls."""
    support_NK = sparse_NK != 0
    residual_NK = ((weight_NK - sparse_NK) @ gram_KK) * support_NK
    direction_NK = residual_NK
    energy_N1 = residual_NK.square().sum(1, keepdim=True)
    tiny = torch.finfo(energy_N1.dtype).tiny
    for _ in range(_SOLVE_steps):
        image_NK = (direction_NK @ gram_KK) * support_NK
        length_N1 = energy_N1 / (direction_NK * image_NK).sum(1, keepdim=True).clamp(min=tiny)
        sparse_NK = sparse_NK + length_N1 * direction_NK
        residual_NK = residual_NK - length_N1 * image_NK
        left_N1 = residual_NK.square().sum(1, keepdim=True)
        direction_NK = residual_NK + left_N1 / energy_N1.clamp(min=tiny) * direction_NK
        energy_N1 = left_N1
    return sparse_NK
