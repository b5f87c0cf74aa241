"""Calls inside a decoder layer, recorded once and made again with something changed: how structure is found by trying.

Everything here is in float32, whatever the decoder computes in: bfloat16 noise would hide what we look for.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from optcore.streaming.decoder import Decoder, State
from optcore.streaming.experts import Experts

Factors = Mapping[str, torch.Tensor]
"""By path of a module: what its channels are multiplied by."""
NOTHING: Factors = MappingProxyType({})


class Call(NamedTuple):
    """What a module was given, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    order: int
    """How many calls of this layer had ended before this one."""

    @property
    def input(self) -> torch.Tensor | None:
        """The tensor that came first."""
        given = [*self.args, *self.kwargs.values()]
        return next((value for value in given if isinstance(value, torch.Tensor)), None)


class Recording:
    """One forward of a layer on a few tokens: the call of every module in it, by path; the layer's own is `""`."""

    def __init__(self, decoder: Decoder, index: int, layer: nn.Module, probe: State) -> None:
        is_exact = all(parameter.dtype == torch.float32 for parameter in layer.parameters())
        self.layer = layer if is_exact else copy.deepcopy(layer).float()
        self.probe: State = _float(probe)
        self.calls: dict[str, Call] = {}
        handles = [
            module.register_forward_hook(self._recorder(path), with_kwargs=True)
            for path, module in self.layer.named_modules()
        ]
        try:
            decoder.forward(index, self.layer, self.probe)
            self._reach_every_expert()
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def replay(self, path: str, outputs: Factors = NOTHING, inputs: Factors = NOTHING) -> torch.Tensor:
        """What a module gives for the input that it was given, with channels of modules inside it multiplied."""
        call = self.calls[path]
        with self._multiplied(outputs, inputs):
            return _first_tensor(self.layer.get_submodule(path)(*call.args, **call.kwargs))

    def around(self, first: str, second: str) -> str:
        """Path of the smallest module that holds both and is called, which a list of modules is not."""
        path = common_ancestor(first, second)
        while path not in self.calls:
            path = path.rpartition(".")[0]
        return path

    def replayed_input(self, consumer: str, path: str, outputs: Factors) -> torch.Tensor | None:
        """What a module is given when `path`, which holds it, is replayed; None where it is not called then."""
        given: list[torch.Tensor] = []
        module = self.layer.get_submodule(consumer)
        handle = module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        try:
            self.replay(path, outputs)
        finally:
            handle.remove()
        return given[-1] if given else None

    @contextmanager
    def _multiplied(self, outputs: Factors, inputs: Factors) -> Iterator[None]:
        find = self.layer.get_submodule
        handles = [find(path).register_forward_hook(_scaled_output(factor)) for path, factor in outputs.items()]
        handles += [find(path).register_forward_pre_hook(_scaled_input(factor)) for path, factor in inputs.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, path: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found = _first_tensor(output)
            if found is not None:
                self.calls[path] = Call(args, kwargs, found, len(self.calls))

        return record

    @torch.no_grad()
    def _reach_every_expert(self) -> None:
        """A few tokens do not visit all experts, but all are given rows of the same tensor."""
        for path, module in self.layer.named_modules():
            call = self.calls.get(path)
            if isinstance(module, Experts) and call is not None and call.input is not None:
                hidden_TH = call.input.reshape(-1, call.input.shape[-1])
                for number, expert in enumerate(module):
                    if f"{path}.{number}" not in self.calls:
                        expert(hidden_TH)


def common_ancestor(first: str, second: str) -> str:
    """Path of the smallest module that holds both."""
    shared = []
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared)


def has_rows_of(x: torch.Tensor | None, source: torch.Tensor) -> bool:
    """Whether every row of `x` [.., K] is a row of `source` [.., K], bit for bit; rows of zeros say nothing."""
    if x is None or not x.numel() or x.shape[-1] != source.shape[-1]:
        return False
    rows, sources = x.reshape(-1, x.shape[-1]), source.reshape(1, -1, x.shape[-1])
    rows = rows[rows.any(-1)]
    return len(rows) > 0 and bool((rows[:, None] == sources).all(-1).any(-1).all())


def _scaled_output(factor_N: torch.Tensor) -> Any:
    return lambda _, __, out: out * factor_N


def _scaled_input(factor_K: torch.Tensor) -> Any:
    return lambda _, args: (args[0] * factor_K, *args[1:])


def _first_tensor(output: Any) -> Any:
    if isinstance(output, tuple | list):
        return next((value for value in output if isinstance(value, torch.Tensor)), None)
    return output if isinstance(output, torch.Tensor) else None


def _float(value: Any) -> Any:
    """The same structure with every floating-point tensor in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, State):
        return State(*(_float(part) for part in value))
    if isinstance(value, dict):
        return {key: _float(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_float(part) for part in value)
    return value
