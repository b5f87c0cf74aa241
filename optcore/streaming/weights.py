"""Parameters of a skeleton filled from a checkpoint, a layer at a time, each stored tensor read once."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from optcore.errors import BadCheckpoint, UnknownArchitecture
from optcore.streaming.lookahead import Lookahead, finite
from optcore.streaming.names import NameMap, Source
from optcore.streaming.reader import TensorReader

_LOSSLESS = {torch.float32: (torch.float32, torch.bfloat16, torch.float16), torch.bfloat16: (torch.bfloat16,)}
"""Stored types that come back bit for bit from the type we compute in."""


class _Target(NamedTuple):
    """A parameter or buffer of the skeleton."""

    module: nn.Module
    key: str
    name: str
    """Its path in the model."""
    is_buffer: bool


class Weights:
    """Knows which stored tensor fills which parameters, in which layer or outside all of them.

    Raises `BadCheckpoint` for a parameter that nothing fills or that has another shape, before anything is read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: TensorReader,
        names: NameMap,
        device: torch.device,
        dtype: torch.dtype,
        prefix: str,
    ) -> None:
        self._model = model
        self._reader = reader
        self._names = names
        self._device = device
        self._dtype = dtype
        self._layers = model.get_submodule(prefix)
        self._prefix = prefix
        inside = {id(module) for module in self._layers.modules()}
        self._outside_modules = {n: module for n, module in model.named_modules() if id(module) not in inside}
        self._outside_targets = self._targets(self._outside_modules)
        self._layer_targets = [self._targets(self._modules_of(index)) for index in range(len(self._layers))]
        self.lookahead = Lookahead(reader, [list(targets) for targets in self._layer_targets], device)
        self._kept: dict[str, torch.Tensor] = {}
        self._outside: dict[str, torch.Tensor] = {}

    def load_outside(self) -> None:
        """Fill everything outside the layers; tensors that cannot be got back exactly are kept as stored."""
        self._build_buffers(self._outside_modules)
        for stored, targets in self._outside_targets.items():
            tensor = finite(stored, self._reader.tensor(stored))
            filled = self._fill(tensor, targets)
            is_exact = tensor.dtype == filled.dtype or tensor.dtype in _LOSSLESS.get(filled.dtype, ())
            self._outside[stored] = filled if is_exact else tensor

    def load_layer(self, index: int, *, keep_stored: bool) -> None:
        """Fill one layer."""
        self._build_buffers(self._modules_of(index))
        for stored, staged in self.lookahead.tensors(index):
            self._fill(staged.moved, self._layer_targets[index][stored], is_ours=staged.moved is not staged.stored)
            if keep_stored:
                self._kept[stored] = staged.stored

    def drop_stored(self) -> None:
        """Forget the stored tensors of the live layer."""
        self._kept = {}

    def stored(self, index: int, quantized: frozenset[str]) -> dict[str, torch.Tensor]:
        """The live layer's tensors as stored, without the weights of `quantized` modules."""
        if self._kept.keys() != self._layer_targets[index].keys():
            raise RuntimeError(f"layer {index} is not in memory with `keep_stored`")
        found: dict[str, torch.Tensor] = {}
        for stored, targets in self._layer_targets[index].items():
            found |= self._split(stored, targets, self._is_split(index, quantized))
        return {name: tensor for name, tensor in found.items() if name.removesuffix(".weight") not in quantized}

    def outside(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is in no layer, as stored; tensors that no parameter takes are read now."""
        inside = {stored for targets in self._layer_targets for stored in targets}
        for stored in self._reader.names:
            if stored in self._outside:
                yield stored, self._outside[stored].detach().to("cpu", self._reader.dtype(stored))
            elif stored not in inside:
                yield stored, self._reader.tensor(stored)

    def _modules_of(self, index: int) -> dict[str, nn.Module]:
        prefix = f"{self._prefix}.{index}"
        return {f"{prefix}.{n}" if n else prefix: module for n, module in self._layers[index].named_modules()}

    def _targets(self, modules: Mapping[str, nn.Module]) -> dict[str, list[_Target]]:
        """By stored tensor, what it fills."""
        found: dict[str, list[_Target]] = {}
        for target in _targets_of(modules):
            source = self._source(target.name)
            if source is None and target.is_buffer:
                continue  # the skeleton computes it
            self._check(target, source)
            assert source
            found.setdefault(source.stored, []).append(target)
        return found

    def _check(self, target: _Target, source: Source | None) -> None:
        if source is None:
            raise BadCheckpoint(
                f"no tensor for parameter {target.name}", remedy="the checkpoint is not complete", field="/model"
            )
        expected = tuple(getattr(target.module, target.key).shape)
        stored = torch.empty(self._reader.shape(source.stored), device="meta")
        try:
            shape = tuple(source.of(stored).shape)
        except IndexError:
            shape = tuple(stored.shape)
        if shape != expected:
            raise BadCheckpoint(
                f"{source.stored} has shape {shape} for {target.name}, config.json asks for {expected}",
                remedy="weights and config.json must be of the same model",
                field="/model",
            )

    def _source(self, name: str) -> Source | None:
        """Where a parameter is read: the one that it is tied to first, when the config ties embeddings."""
        tied = (self._model._tied_weights_keys or {}).get(name, name)
        sources = self._names.sources
        if self._model.config.get_text_config().tie_word_embeddings and tied in sources:
            return sources[tied]
        return sources.get(name)

    def _build_buffers(self, modules: Mapping[str, nn.Module]) -> None:
        """Let transformers compute what no checkpoint holds: rotary tables by their own module, others by its owner."""
        empty = {n: m for n, m in modules.items() if any(buffer.is_meta for buffer in m.buffers(recurse=False))}
        for module in empty.values():
            module.to_empty(device=self._device, recurse=False)
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.fill_(torch.nan)
            self._model._init_weights(module)
        if _uncomputed(empty):
            for owner in self._owners():  # Falcon-H1's model computes the multipliers of all of its layers
                self._model._init_weights(owner)
        if name := _uncomputed(empty):
            raise UnknownArchitecture(
                f"{type(self._model).__name__} computes {name} in a way that cannot be repeated for a single layer",
                remedy="use another model; please report it with the engine's log",
                field="/model",
            )

    def _owners(self) -> Iterator[nn.Module]:
        """The modules around the layers, from the inside out."""
        path = self._prefix
        while path:
            path = path.rpartition(".")[0]
            yield self._model.get_submodule(path)

    def _fill(self, tensor: torch.Tensor, targets: list[_Target], *, is_ours: bool = False) -> torch.Tensor:
        """Set what a stored tensor fills; parameters that share it share memory.

        Whoever changes a parameter must not change what is stored: each is a copy, even of the same type, unless the
        tensor is one already.
        """
        made: dict[Source, torch.Tensor] = {}
        for target in targets:
            source = self._source(target.name)
            assert source
            if target.is_buffer:
                value = _known(tensor.to(self._device, copy=True))
                setattr(target.module, target.key, value)
            elif source in made:
                value = made[source]
                setattr(target.module, target.key, value)
            else:
                value = source.of(tensor).to(self._device, self._dtype, copy=not is_ours).contiguous()
                value = made[source] = _known(nn.Parameter(value, requires_grad=False))
                setattr(target.module, target.key, value)
        return value

    def _is_split(self, index: int, quantized: frozenset[str]) -> bool:
        """Whether a fused tensor of the layer holds an expert that is quantized."""
        targets = (target for targets in self._layer_targets[index].values() for target in targets)
        names = (t.name for t in targets if self._names.sources[t.name].part)
        return any(self._names.stored_name[name].removesuffix(".weight") in quantized for name in names)

    def _split(self, stored: str, targets: list[_Target], is_split: bool) -> dict[str, torch.Tensor]:
        tensor = self._kept[stored]
        sources = {target.name: self._names.sources[target.name] for target in targets}
        if not is_split or not any(source.part for source in sources.values()):
            return {stored: tensor}
        return {self._names.stored_name[name]: source.of(tensor) for name, source in sources.items()}


def _known(value: torch.Tensor) -> torch.Tensor:
    """Marked as transformers marks what it must not initialize."""
    value._is_hf_initialized = True
    return value


def _uncomputed(modules: Mapping[str, nn.Module]) -> str:
    """The name of a buffer that nobody has given its values; empty where there is none."""
    for path, module in modules.items():
        for key, buffer in module.named_buffers(recurse=False):
            is_own = key in module._non_persistent_buffers_set
            if is_own and buffer.is_floating_point() and bool(buffer.isnan().any()):
                return f"{path}.{key}"
    return ""


def _targets_of(modules: Mapping[str, nn.Module]) -> Iterator[_Target]:
    for path, module in modules.items():
        for key, _ in module.named_parameters(recurse=False):
            yield _Target(module, key, f"{path}.{key}" if path else key, is_buffer=False)
        for key, _ in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                yield _Target(module, key, f"{path}.{key}" if path else key, is_buffer=True)
