"""Rounding with a gradient: the forward value is what an engine computes, the backward one passes it by.

The straight-through estimator (Bengio et al., arXiv:1308.3432) takes rounding for the identity. Where a value lies
beyond the end of a grid, moving it changes nothing, and its gradient is zero.
"""

from typing import Any

import torch

from optcore.algorithms.lattice import Lattice
from optcore.algorithms.rounding import grid_of
from optcore.algorithms.scales import Scales
from optcore.kernels.activations import fake_quantize_activation
from optcore.kernels.weights import passed, rounded_weight
from optcore.schemes import QuantArgs


def round_weight(
    weight_NK: torch.Tensor, scales: Scales, args: QuantArgs, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A weight [N, K] as it will be decoded, in `dtype`; the gradient passes, but for what lies beyond the grid."""
    rounded_NK: torch.Tensor = _Rounded.apply(weight_NK, scales, args, dtype)
    return rounded_NK


def learned_weight(weight_NK: torch.Tensor, points: Lattice) -> torch.Tensor:
    """The same in float32 for a lattice whose steps require a gradient. They get the one of learned step sizes (LSQ,
    arXiv:1902.08153, equation 3): for a weight inside the grid round(t) - t with t = w / step, outside the grid's end.
    """
    low, high = points.grid.ends
    inside = points.in_steps(weight_NK).clamp(low, high)
    return points.from_steps(inside + (points.grid.round(inside) - inside).detach())


def round_activation(
    x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, *, search: bool = False
) -> torch.Tensor:
    """Activations [..., K] as the engine rounds them; the gradient passes, but for what a static scale clips."""
    rounded: torch.Tensor = _RoundedActivation.apply(x, args, scale, search)
    return rounded


class _Rounded(torch.autograd.Function):
    """Keeps where weights are inside the grid, and nothing where they are known to be."""

    @staticmethod
    def forward(ctx: Any, weight_NK: torch.Tensor, scales: Scales, args: QuantArgs, dtype: torch.dtype) -> torch.Tensor:
        rounded_NK, ctx.inside_NK = rounded_weight(weight_NK, scales, args, dtype)
        ctx.dtype = weight_NK.dtype
        return rounded_NK

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return passed(gradients[0], ctx.inside_NK, ctx.dtype), None, None, None


class _RoundedActivation(torch.autograd.Function):
    """Keeps where a static scale clips."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, search: bool) -> torch.Tensor:
        ctx.inside = None
        if args.strategy == "tensor" and scale is not None:
            ctx.inside = x.abs() <= scale.float().to(x.device) * max(grid_of(args).ends)
        return fake_quantize_activation(x, args, scale, search)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return gradients[0] if ctx.inside is None else gradients[0] * ctx.inside, None, None, None
