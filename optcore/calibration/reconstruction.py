"""How much of what linear layers say is lost when their weights change, told layer by layer as soon as it is known.

Each linear layer on its own, on what a pass measured anyway: no layer is run for it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from optcore.run import Run

METRIC = "reconstruction_error"


@torch.no_grad()
def lost_share(
    weight_NK: torch.Tensor, changed_NK: torch.Tensor, mean_square_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of the outputs' energy that a change of the weight loses: ||(W' - W) D||^2 / ||W D||^2, float32 [].

    D holds the root mean square of each input, whose correlations are left out; ones where nothing was measured.
    """
    lost_K = (changed_NK - weight_NK).float().square_().sum(0)
    whole_K = torch.linalg.vector_norm(weight_NK, dim=0, dtype=torch.float32).square()
    if mean_square_K is not None:
        mean_square_K = mean_square_K.to(lost_K.device)
        lost_K, whole_K = lost_K * mean_square_K, whole_K * mean_square_K
    lost, whole = lost_K.sum(), whole_K.sum()
    return torch.where(whole > 0, lost / whole, torch.zeros_like(lost))


def tell_layer(run: "Run", index: int, shares: Iterable[torch.Tensor | float]) -> None:
    """Say the relative error of a layer's linears: the root of the mean share, a norm over a norm as in the report.
    Nothing of a layer in which nothing changed."""
    if found := [torch.as_tensor(share).float().cpu() for share in shares]:
        run.metric(METRIC, float(torch.stack(found).mean().sqrt()), index)
