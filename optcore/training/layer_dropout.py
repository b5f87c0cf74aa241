"""Layer dropout: while a model trains, some windows skip some layers, later layers more often (LayerSkip, 4.1).

Legend: B windows, T tokens, H hidden size.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn


def dropout_rates(depth: int, largest: float) -> list[float]:
    """Each layer's share of windows that skip it: largest (2^(l / (L - 1)) - 1), 0 at the first of L layers."""
    return [largest * (math.exp(index * math.log(2) / max(1, depth - 1)) - 1) for index in range(depth)]


def drop_layers(layers: Sequence[nn.Module], largest: float) -> None:
    """Let windows skip layers from now on, in training mode only.

    Which ones is drawn in each forward pass from torch's generator, which a training loop seeds by its step: a run
    that goes on draws what it would have drawn. A layer that is recomputed in the backward pass must be made so before,
    so that nothing is drawn there.
    """
    for layer, rate in zip(layers, dropout_rates(len(layers), largest), strict=True):
        if rate:
            layer.forward = partial(_some_skip, layer, layer.forward, rate)


def _some_skip(layer: nn.Module, forward: Callable[..., Any], rate: float, *given: Any, **named: Any) -> Any:
    if not layer.training:
        return forward(*given, **named)
    hidden_BTH: torch.Tensor = given[0] if given else named["hidden_states"]
    skips_B11 = torch.rand(len(hidden_BTH), 1, 1, device=hidden_BTH.device) < rate
    out = forward(*given, **named)
    if isinstance(out, tuple):
        return (torch.where(skips_B11, hidden_BTH, out[0]), *out[1:])
    return torch.where(skips_B11, hidden_BTH, out)
