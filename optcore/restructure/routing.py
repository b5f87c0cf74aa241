"""Blocks of experts in decoder layers: what decides between the experts, and the model with some of them forbidden.

Legend: E experts, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from optcore.errors import RecipeError
from optcore.restructure.probe import Around
from optcore.streaming.experts import Experts, decides


class Routed(NamedTuple):
    """The experts of a decoder layer, and their router."""

    path: str
    """Of the experts in the layer."""
    experts: Experts
    router: nn.Module
    tables: tuple[str, ...]
    """Paths in the layer of the parameters and buffers that have a row for each expert: weight, biases."""

    @property
    def groups(self) -> int:
        """Into how many groups of neighbours the router parts experts before it chooses."""
        return int(getattr(self.router, "num_group", None) or 1)


def routed(layer: nn.Module) -> Routed | None:
    """The layer's experts; None where it has none. Raises `RecipeError` where nothing beside them decides."""
    for place, block in layer.named_modules():
        for name, child in block.named_children():
            if isinstance(child, Experts):
                prefix = f"{place}." if place else ""
                return _routed(block, prefix, name, child)
    return None


def _routed(block: nn.Module, prefix: str, name: str, experts: Experts) -> Routed:
    count = len(experts)
    found = [(other, child) for other, child in block.named_children() if decides(child, count)]
    if len(found) != 1:
        raise RecipeError(
            f"{len(found)} modules beside {prefix}{name} have a row for each of its {count} experts: no telling which "
            "one is the router",
            remedy="use a model with one router for each block of experts",
            field="/chain",
        )
    [(other, router)] = found
    tables = [f"{other}.{path}" for path, tensor in _tensors(router) if tensor.shape[:1] == (count,)]
    own = [path for path, tensor in _tensors(block) if "." not in path and tensor.shape == (count,)]
    return Routed(f"{prefix}{name}", experts, router, tuple(prefix + path for path in tables + own))


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


class _Forbidding(TorchFunctionMode):
    """Sets some logits of a router's linear to -inf, whatever the router makes of them."""

    def __init__(self, weights: Sequence[torch.Tensor], removed: Sequence[int]) -> None:
        super().__init__()
        self._addresses, self._removed = {weight_EH.data_ptr() for weight_EH in weights}, torch.tensor(removed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is linear and args[1].data_ptr() in self._addresses:
            return out.index_fill(-1, self._removed.to(out.device), -torch.inf)
        return out


def forbidding(removed: Mapping[int, Sequence[int]]) -> Around:
    """Around layers, by their number, whose routers never choose `removed` experts."""
    return lambda index, layer: forbidden(layer, removed.get(index, ()))


@contextmanager
def forbidden(layer: nn.Module, removed: Sequence[int]) -> Iterator[None]:
    """The layer, whose router never chooses `removed` experts; put back afterwards.

    Their logits are -inf, and so are their own biases: what is added to a sigmoid's 0 could still be chosen.
    """
    block = routed(layer) if removed else None
    if block is None:
        yield
        return
    tensors = dict(_tensors(layer))
    biases = [tensors[path] for path in block.tables if tensors[path].ndim == 1]
    weights = [tensors[path] for path in block.tables if tensors[path].ndim == 2]
    before = [bias_E.data for bias_E in biases]
    for bias_E in biases:
        bias_E.data = bias_E.data.index_fill(0, torch.tensor(removed, device=bias_E.device), -torch.inf)
    try:
        with _Forbidding(weights, removed):
            yield
    finally:
        for bias_E, data_E in zip(biases, before, strict=True):
            bias_E.data = data_E
