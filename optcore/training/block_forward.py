"""A layer that trains, called on cached hidden states of some windows.

Shapes: B windows of T tokens, H hidden size.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from optcore.streaming.cache import RoundingCache
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.hidden import HiddenStates
from optcore.training.block_loop import relative_errors


class BlockForward:
    """Weights are float32; matrices are multiplied in `precision`."""

    def __init__(
        self,
        decoder: Decoder,
        index: int,
        layer: nn.Module,
        cache: RoundingCache | None,
        precision: Literal["auto", "float32", "bfloat16"],
    ) -> None:
        self._decoder = decoder
        self._index = index
        self._layer = layer
        self._cache = cache
        self._precision = precision

    def errors(self, given: HiddenStates, targets: HiddenStates, windows: list[int]) -> torch.Tensor:
        """Relative squared error of the layer's output for each token of some windows, [B, T]."""
        state = given.chosen(windows)
        arguments: list[dict[str, Any]] = [{} for _ in state.arguments]
        arguments[self._index] = {name: _widened(value) for name, value in state.arguments[self._index].items()}
        widened = State(state.hidden_BTH.float(), tuple(arguments))
        with self._products():
            found_BTH = self._decoder.forward(self._index, self._layer, widened, self._cache).hidden_BTH
        return relative_errors(found_BTH, targets.hidden_STH[windows].to(found_BTH.device))

    def _products(self) -> AbstractContextManager[object]:
        kind = self._decoder.device.type
        if self._precision == "float32" or (self._precision == "auto" and kind == "cpu"):
            return nullcontext()
        return torch.autocast(kind, torch.bfloat16)


def _widened(value: Any) -> Any:
    """Rotary tables and masks in float32, as the hidden states beside them."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    return tuple(map(_widened, value)) if isinstance(value, tuple) else value
