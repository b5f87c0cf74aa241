"""A linear layer that lost inputs, solved anew for the ones that are left.

Legend: N outputs, K inputs, J inputs that are left.
"""

import torch


def refitted(weight_NK: torch.Tensor, gram_KK: torch.Tensor, kept_J: torch.Tensor, damping: float) -> torch.Tensor:
    """The weight [N, K] that gives X W^T most closely from the kept columns of X alone; the other columns are zero.

    With G = X^T X (up to a factor) it is W_J + W_R G_RJ (G_JJ + c I)^-1, R the removed inputs: the least-squares
    solution, whose correction (rather than the weights) is shrunk by the ridge c = `damping` times the mean of G_JJ's
    diagonal. Solved in float64; inputs that were never there, and an empty choice, leave the weight as it was.
    """
    fitted_NK = torch.zeros_like(weight_NK, dtype=torch.float64)
    kept_J = kept_J.to(weight_NK.device)
    removed_K = torch.ones(weight_NK.shape[1], dtype=torch.bool, device=weight_NK.device).index_fill(0, kept_J, False)
    fitted_NK[:, kept_J] = weight_NK[:, kept_J].double()
    rows_JK = gram_KK[kept_J].double()
    gram_JJ = rows_JK[:, kept_J]
    if not gram_JJ.diagonal().any():
        return fitted_NK
    ridge = damping * gram_JJ.diagonal().mean()
    cross_JN = rows_JK[:, removed_K] @ weight_NK[:, removed_K].double().mT
    fitted_NK[:, kept_J] += torch.cholesky_solve(cross_JN, _factor(gram_JJ, ridge)).mT
    return fitted_NK


def _factor(gram_JJ: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor of the damped matrix; ten times the ridge as often as rounding makes it indefinite."""
    while True:
        gram_JJ.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(gram_JJ)
        if not failed:
            return factor
        ridge = ridge * 10
