"""Where the training of a quantized weight starts: in high precision, and rounding to the codes that were chosen.

A search with error feedback (GPTQ) does not round each weight to its nearest value. Training that started at the dense
weight would undo its choice at the first step; training that started at the decoded weight would have forgotten how far
each weight is from its next value. We start at the dense weight where it rounds to its code, and else between the
code's value and the dense weight, as near to it as still rounds to the code. So the untrained start computes exactly
what was measured after quantization.
"""

import torch

from optcore.algorithms.lattice import Lattice

_HALVINGS = 8
_FIT_ROUNDS = 3


@torch.no_grad()
def master_weight(dense_NK: torch.Tensor, decoded_NK: torch.Tensor, points: Lattice) -> torch.Tensor:
    """The start of a weight, float32 [N, K]: `points.nearest(start)` is `decoded_NK`, bit for bit.

    `dense_NK` may lack channel scales that were moved into the quantized weight (smoothing): they are fitted.
    """
    dense = _balanced(dense_NK.float(), decoded_NK)
    start, share = decoded_NK.clone(), torch.zeros_like(decoded_NK)
    for halving in range(_HALVINGS):  # the largest share of the way to the dense weight that keeps the code
        tried = share + 0.5**halving if halving else torch.ones_like(share)
        candidate = decoded_NK + (dense - decoded_NK) * tried.clamp(max=1)
        keeps = points.nearest(candidate) == decoded_NK
        start, share = torch.where(keeps, candidate, start), torch.where(keeps, tried.clamp(max=1), share)
    return start


def _balanced(dense_NK: torch.Tensor, decoded_NK: torch.Tensor) -> torch.Tensor:
    """The dense weight with the row and column factors that bring it nearest to the decoded one (least squares)."""
    fitted = dense_NK
    for _ in range(_FIT_ROUNDS):
        fitted = fitted * _factor(fitted, decoded_NK, 0)
        fitted = fitted * _factor(fitted, decoded_NK, 1)
    is_nearer = (fitted - decoded_NK).square().sum() < 0.5 * (dense_NK - decoded_NK).square().sum()
    return fitted if is_nearer else dense_NK  # without smoothing the factors would only follow the rounding


def _factor(fitted_NK: torch.Tensor, target_NK: torch.Tensor, dim: int) -> torch.Tensor:
    energy = fitted_NK.square().sum(dim, keepdim=True)
    factor = (fitted_NK * target_NK).sum(dim, keepdim=True) / energy.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(energy > 0, factor, 1.0)
