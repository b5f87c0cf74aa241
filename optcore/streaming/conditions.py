"""A model's `conditional.json` applied to what a decoder streams: masks before the layers, thresholds inside them.

Legend: B windows, T tokens, K inputs of a linear layer.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optcore.conditional import Conditional, SparseInput, Window
from optcore.errors import BadCheckpoint

Arguments = tuple[dict[str, Any], ...]
_MASK = "attention_mask"


def masked(arguments: Arguments, window: Window, length: int, device: torch.device) -> Arguments:
    """What layers are called with, the masks of those with a window narrowed.

    Texts that the window and its sinks hold are left as they are: full attention, bit for bit.
    """
    if length <= window.tokens + window.sinks:
        return arguments
    seen_TT = visible(length, window, device)
    made: dict[int, torch.Tensor] = {}  # layers share masks, and a mask of a long text is large
    narrowed = list(arguments)
    for index in window.layers:
        mask = arguments[index].get(_MASK)
        if id(mask) not in made:
            made[id(mask)] = _narrowed(mask, seen_TT)
        narrowed[index] = {**arguments[index], _MASK: made[id(mask)]}
    return tuple(narrowed)


def visible(length: int, window: Window, device: torch.device | None = None) -> torch.Tensor:
    """Which keys (columns) each token (rows) sees, bool [T, T]: the last `tokens`, itself counted in, and the sinks."""
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril_()  # a byte a pair: texts are long
    seen_TT = causal_TT.triu(1 - window.tokens)
    seen_TT[:, : window.sinks] = causal_TT[:, : window.sinks]
    return seen_TT


@contextmanager
def thresholded(layer: nn.Module, inputs: Mapping[str, SparseInput]) -> Iterator[None]:
    """The layer with part of its linears' inputs, by path, taken for zero."""
    handles = [
        layer.get_submodule(path).register_forward_pre_hook(_sparse_input(one))
        for path, one in inputs.items()
        if one.threshold or one.dropped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_conditions(conditional: Conditional, modules: Collection[str], layers: int) -> None:
    """Raises `BadCheckpoint` for a document that is of another model."""
    lost = [name for name in (conditional.inputs.tensors if conditional.inputs else ()) if name not in modules]
    lost += [f"layer {index}" for index in (conditional.window.layers if conditional.window else ()) if index >= layers]
    exits = conditional.early_exit.layers if conditional.early_exit else ()
    lost += [f"an exit after layer {depth}" for depth in exits if not 0 < depth < layers]
    if lost:
        raise BadCheckpoint(f"conditional.json speaks of {lost[0]}, which the model does not have", field="/model")


def _narrowed(mask: torch.Tensor | None, seen_TT: torch.Tensor) -> torch.Tensor:
    """None is the causal mask; models give booleans where something is seen, or numbers to add to scores."""
    if mask is None:
        return seen_TT[None, None]
    if mask.dtype == torch.bool:
        return mask & seen_TT
    return mask.masked_fill(~seen_TT, torch.finfo(mask.dtype).min)


def _sparse_input(one: SparseInput) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    dropped = torch.tensor(one.dropped, dtype=torch.long)

    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x = given[0]
        kept = x.index_fill(-1, dropped.to(x.device), 0) if len(dropped) else x * (x.abs() > one.threshold)
        return (kept, *given[1:])

    return hook
