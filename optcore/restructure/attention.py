"""Where a layer's attention heads come together, and which rows before that are of some of them alone.

Seen in one call of the layer on a few tokens, so that nothing about an architecture is written here.

Legend: T tokens, K inputs of the output projection, heads after each other; N outputs of a linear before it.
"""

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from optcore.streaming.decoder import Decoder, State

_SOFTMAX = ("softmax", "_softmax")


class Attention(NamedTuple):
    """The attention of a decoder layer."""

    output: str
    """Path in the layer of the linear that reads all heads."""
    heads: int


class _Reached(Exception):
    """The output projection was called: what comes after it, nobody looks at."""


class _Attending(TorchFunctionMode):
    """Notes the first matrix that is multiplied by once attention was computed."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.weight: torch.Tensor | None = None
        self.heads = 0
        self._tokens = tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and self.heads:
            self.weight = args[1]
            raise _Reached
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" or (name in _SOFTMAX and out.shape[2:-1] == (self._tokens,)):
            self.heads = out.shape[1]
        return out


@torch.no_grad()
def attention_of(decoder: Decoder, index: int, layer: nn.Module, probe: State) -> Attention | None:
    """The layer's attention; None where it has none, or where no linear takes the heads together after it."""
    seen = _Attending(probe.hidden_BTH.shape[1])
    with suppress(_Reached), seen:
        decoder.forward(index, layer, probe)
    linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    path = next((path for path, module in linears.items() if module.weight is seen.weight), None)
    if path is None or linears[path].in_features % seen.heads:
        return None
    return Attention(path, seen.heads)


def rows_of(
    decoder: Decoder, index: int, layer: nn.Module, probe: State, output: str, gone_K: torch.Tensor
) -> dict[str, torch.Tensor]:
    """By path of a linear before the output projection, the outputs [N] that reach `gone_K` inputs of it and no others.

    What reaches what is read off gradients: a key that several queries share reaches all of their heads.
    """
    leaves: list[tuple[str, torch.Tensor]] = []
    given: list[torch.Tensor] = []

    def follow(path: str) -> Any:
        def hook(_: nn.Module, __: object, out: torch.Tensor) -> torch.Tensor:
            leaves.append((path, torch.zeros_like(out, requires_grad=True)))
            return out + leaves[-1][1]

        return hook

    def reach(_: nn.Module, args: tuple[Any, ...]) -> None:
        given.append(args[0])
        raise _Reached

    linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_hook(follow(path)) for path, module in linears.items() if path != output]
    handles.append(linears[output].register_forward_pre_hook(reach))
    try:
        with suppress(_Reached), torch.enable_grad():
            decoder.forward(index, layer, probe)
    finally:
        for handle in handles:
            handle.remove()
    [x_BTK] = given
    gone, kept = (_reached(x_BTK[..., part_K], leaves) for part_K in (gone_K, ~gone_K))
    found = {path: rows_N & ~kept[path] for path, rows_N in gone.items()}
    return {path: rows_N for path, rows_N in found.items() if rows_N.any()}


def _reached(x: torch.Tensor, leaves: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """By path, whether each output [N] of a linear reaches any of these values, in any of its calls."""
    weighted = (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)).sum()
    gradients = torch.autograd.grad(weighted, [leaf for _, leaf in leaves], retain_graph=True, materialize_grads=True)
    found: dict[str, torch.Tensor] = {}
    for (path, _), gradient in zip(leaves, gradients, strict=True):
        reaches_N = gradient.flatten(0, -2).ne(0).any(0)
        found[path] = found[path] | reaches_N if path in found else reaches_N
    return found
