"""How much of what linear layers say is lost when their weights change, told layer by layer as soon as it is known.

Each linear layer on its own, on what a pass measured anyway: no layer is run for it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from optcore.run import Run

METRIC = "reconstruction_error"
_AT_ONCE = {True: 2**16, False: 2**24}
"""Weights that are looked at together, on a CPU as many as its caches hold: a whole matrix would take three more."""


@torch.no_grad()
def lost_share(
    weight_NK: torch.Tensor, changed_NK: torch.Tensor, mean_square_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of the outputs' energy that a change of the weight loses: ||(W' - W) D||^2 / ||W D||^2, float32 [].

    D holds the root mean square of each input, whose correlations are left out; ones where nothing was measured.
    """
    rows = max(1, _AT_ONCE[weight_NK.is_cpu] // weight_NK.shape[1])
    weights = None if mean_square_K is None else mean_square_K.to(weight_NK.device, torch.float32)
    lost = whole = torch.zeros((), device=weight_NK.device)
    for own, changed in zip(weight_NK.split(rows), changed_NK.split(rows), strict=True):
        weight = own.float()
        lost = lost + _energy(changed.float() - weight, weights)
        whole = whole + _energy(weight, weights)
    return torch.where(whole > 0, lost / whole, torch.zeros_like(lost))


def _energy(rows_NK: torch.Tensor, mean_square_K: torch.Tensor | None) -> torch.Tensor:
    if mean_square_K is None:
        return torch.linalg.vector_norm(rows_NK).square()
    return (rows_NK.square() @ mean_square_K).sum()


def tell_layer(run: "Run", index: int, shares: Iterable[torch.Tensor | float]) -> None:
    """Say the relative error of a layer's linears: the root of the mean share, a norm over a norm as in the report.
    Nothing of a layer in which nothing changed."""
    found = list(shares)
    if not found:
        return
    device = next((share.device for share in found if isinstance(share, torch.Tensor)), None)
    together = torch.stack([torch.as_tensor(share, dtype=torch.float32, device=device) for share in found])
    run.metric(METRIC, together.mean().sqrt().item(), index)  # the one value that a GPU is waited for
