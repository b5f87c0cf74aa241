"""What takes the place of a model's layers while its own forward runs around them."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn


class State(NamedTuple):
    """Hidden states between layers, and what every layer is called with besides them."""

    hidden_BTH: torch.Tensor
    arguments: tuple[dict[str, Any], ...]
    """Keyword arguments by layer."""
    frozen_BT: torch.Tensor | None = None
    """Tokens that have left: layers see them as they are, and change them no more. None: all go on."""


class StandIn(nn.Module):
    """Has the attributes of a layer that models look at before they call it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type", "is_attention_layer", "block_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))


class Recorder(StandIn):
    """Keeps what a layer is called with, by name, and passes the hidden states on, alone or first in a tuple."""

    def __init__(self, layer: nn.Module, returns_tuple: bool) -> None:
        super().__init__(layer)
        self._signature = inspect.signature(layer.forward)
        self.returns_tuple = returns_tuple
        self.hidden: torch.Tensor = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(self, *given: Any, **named: Any) -> Any:
        bound = dict(self._signature.bind(*given, **named).arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                bound |= bound.pop(parameter.name, {})
        self.hidden = bound.pop(next(iter(self._signature.parameters)))
        self.arguments = bound
        return (self.hidden, None) if self.returns_tuple else self.hidden


class Given(StandIn):
    """Gives the hidden states that were computed elsewhere, in the form in which the layer gives them."""

    def __init__(self, layer: nn.Module, hidden_BTH: torch.Tensor, returns_tuple: bool) -> None:
        super().__init__(layer)
        self._hidden_BTH = hidden_BTH
        self._returns_tuple = returns_tuple

    def forward(self, *given: Any, **named: Any) -> Any:
        return (self._hidden_BTH, None) if self._returns_tuple else self._hidden_BTH
