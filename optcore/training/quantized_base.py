"""A frozen weight in 4-bit codes, for adapters to be trained beside it (QLoRA, arXiv:2305.14314).

Shapes: N outputs, K inputs of a linear layer.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.packing import pack, unpack
from optcore.algorithms.scales import find_scales
from optcore.schemes import PRESETS
from optcore.streaming.groups import linears

_ARGS = PRESETS["nf4"].weights


class QuantizedBaseLinear(nn.Linear):
    """Takes the place of a linear layer, its weight in NF4 with double quantization: 4.13 bits a value.

    The weight is decoded anew in each pass and never kept, in the backward pass neither. It has no gradient.
    """

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)  # the weight of `nn.Linear` would hide our own
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        weight_NK = plain.weight.detach().float()
        scales = find_scales([weight_NK], _ARGS, "max", torch.float32)[0]
        for suffix, tensor in pack(encode(weight_NK, scales, _ARGS), scales, _ARGS).items():
            self.register_buffer(suffix, tensor, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """What the codes stand for, float32 [N, K]."""
        return decode(*unpack(dict(self.named_buffers(recurse=False)), _ARGS), _ARGS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input times the decoded weight."""
        out: torch.Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """x W^T, which keeps W in its codes for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: QuantizedBaseLinear) -> torch.Tensor:
        ctx.base, ctx.dtype = base, x.dtype
        return linear(x, base.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradients[0] @ ctx.base.weight.to(gradients[0].dtype)).to(ctx.dtype), None


@torch.no_grad()
def hold_in_nf4(layer: nn.Module) -> None:
    """Put a layer's linears, expert routers aside, into codes; one whose inputs make no whole blocks stays as it is."""
    for path, module in linears(layer).items():
        if module.in_features % (_ARGS.group_size or 1) == 0:
            parent, _, leaf = path.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, QuantizedBaseLinear(module))
