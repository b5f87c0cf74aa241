"""Rounding with a gradient: the forward value is what an engine computes, the backward one passes it by.

The straight-through estimator (Bengio et al., arXiv:1308.3432) takes rounding for the identity. Where a value lies
beyond the end of a grid, moving it changes nothing, and its gradient is zero.
"""

from typing import Any

import torch

from optcore.algorithms.activations import fake_quantize_activation
from optcore.algorithms.lattice import Lattice
from optcore.algorithms.rounding import grid_of
from optcore.schemes import QuantArgs


def round_weight(weight_NK: torch.Tensor, points: Lattice) -> torch.Tensor:
    """The nearest points of a lattice, float32 [N, K], bit for bit those that `encode` and `decode` give.

    Where the lattice's steps require a gradient they get the one of learned step sizes (LSQ, arXiv:1902.08153, equation
    3): for a weight inside the grid round(t) - t with t = w / step, outside the grid's end.
    """
    if points.step_NK.requires_grad:
        low, high = points.grid.ends
        inside = points.in_steps(weight_NK).clamp(low, high)
        return points.from_steps(inside + (points.grid.round(inside) - inside).detach())
    rounded: torch.Tensor = _Rounded.apply(weight_NK, points)
    return rounded


class _Rounded(torch.autograd.Function):
    """Keeps a mask for the backward pass, and nothing where no weight lies outside the grid."""

    @staticmethod
    def forward(ctx: Any, weight_NK: torch.Tensor, points: Lattice) -> torch.Tensor:
        units = points.in_steps(weight_NK)
        low, high = points.grid.ends
        inside = (units >= low - 0.5) & (units <= high + 0.5)  # what rounds to an end is not beyond it
        ctx.inside = None if bool(inside.all()) else inside
        return points.from_steps(points.grid.round(units))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradients[0] if ctx.inside is None else gradients[0] * ctx.inside), None


def round_activation(
    x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, *, search: bool = False
) -> torch.Tensor:
    """Activations [..., K] as the engine rounds them; the gradient passes, but for what a static scale clips."""
    rounded = fake_quantize_activation(x.detach(), args, scale, search)
    if args.dynamic or args.strategy != "tensor" or scale is None:
        return x + (rounded - x).detach()
    reach = scale.float().to(x.device) * max(grid_of(args).ends)
    return torch.where(x.detach().abs() <= reach, x + (rounded - x).detach(), rounded)
