"""Experts that no token reached take part in a step with a gradient of zero.

Otherwise the processes of a step would not agree on which gradients there are to add, and what an optimizer does to an
expert would depend on how a step is split.
"""

from typing import Any

import torch
from torch import nn

from optcore.streaming.experts import Experts


def touch_experts(model: nn.Module) -> None:
    """Have each forward pass of a layer's experts use all that is trained of them."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(_touched)


def _touched(module: nn.Module, _: Any, out: torch.Tensor) -> torch.Tensor:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found: torch.Tensor = _Touch.apply(out, *trained) if trained else out
    return found


class _Touch(torch.autograd.Function):
    """Gives its first argument back."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.zeros = [one.new_zeros(()).expand_as(one) for one in parameters]  # not the parameters: they may be spread
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients[0], *ctx.zeros
