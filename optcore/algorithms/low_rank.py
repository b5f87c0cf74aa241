"""A matrix as the product of two thin ones: the truncated SVD, plain or as seen by the layer's inputs.

Plain (Eckart and Young, 1936) takes least from the weight. Whitened (SVD-LLM, arXiv:2403.07378, section 3.1) takes
least from the output: with X^T X / tokens = L L^T, the squared change of the output per token is ||(W - W') L||_F^2,
least where W' L is the truncated SVD U S V^T of W L. Then W' = U_r S_r V_r^T L^-1 = U_r U_r^T W, which needs no
inverse, so an input that hardly occurs cannot blow anything up. All in float64: singular values span many orders of
magnitude.
"""

from typing import NamedTuple

import torch

from optcore.algorithms.factor import damped, ladder

DAMPING = 1e-5


class Factors(NamedTuple):
    """W' = left @ right, both float64, of one scale."""

    left_NR: torch.Tensor
    right_RK: torch.Tensor

    @property
    def product_NK(self) -> torch.Tensor:
        """The matrix that they stand for, float64."""
        return self.left_NR.double() @ self.right_RK.double()


def whitener(gram_KK: torch.Tensor) -> torch.Tensor | None:
    """Lower triangular L, float64, with L L^T = H + damping * mean(diag H) * I; None for no Gram matrix, or H = 0.

    The damping starts at 1e-5 and rises until there is a factor.
    """
    gram_KK = gram_KK.double()
    diagonal_K = gram_KK.diagonal()
    if not gram_KK.isfinite().all() or (diagonal_K < 0).any() or not diagonal_K.any():
        return None
    for share in ladder(DAMPING):
        lower_KK, failed = torch.linalg.cholesky_ex(damped(gram_KK[None], share)[0])
        if not failed and lower_KK.isfinite().all():
            return lower_KK
    return None


def singular_values(weight_NK: torch.Tensor, lower_KK: torch.Tensor | None) -> torch.Tensor:
    """Of W, or of W L, falling, float64: their squares are what each component adds to the weight, or to the output."""
    return torch.linalg.svdvals(_seen(weight_NK, lower_KK))


def factorized(weight_NK: torch.Tensor, lower_KK: torch.Tensor | None, rank: int) -> Factors:
    """The best factors of a rank: of the weight, or of the outputs that L stands for (`whitener`)."""
    directions_NR = torch.linalg.svd(_seen(weight_NK, lower_KK), full_matrices=False).U[:, :rank]
    right_RK = directions_NR.mT @ weight_NK.double()
    # Both take half of each component's size, so that a narrow type holds them alike.
    size_R = right_RK.norm(dim=1).sqrt()
    divisor_R = torch.where(size_R > 0, size_R, torch.ones_like(size_R))
    return Factors(directions_NR * divisor_R, right_RK / divisor_R[:, None])


def _seen(weight_NK: torch.Tensor, lower_KK: torch.Tensor | None) -> torch.Tensor:
    return weight_NK.double() if lower_KK is None else weight_NK.double() @ lower_KK
