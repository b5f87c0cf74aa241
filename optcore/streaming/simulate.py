"""A decoder layer that computes what the quantized one will: rounded weights, rounded inputs, a rounded KV cache."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear

from optcore.algorithms.activations import outlier_columns, static_scale
from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.scales import find_scales
from optcore.kernels.activations import fake_quantize_activation
from optcore.quantization import Quantization, QuantizedLayer, load_quantization
from optcore.schemes import QuantArgs
from optcore.streaming.cache import RoundedCache, RoundingCache
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import fused_groups, linears
from optcore.streaming.quantized import QuantizedCheckpoint


class RoundedLinear(NamedTuple):
    """What a quantized linear layer computes with."""

    weight_NK: torch.Tensor
    activations: QuantArgs | None = None
    input_scale: torch.Tensor | None = None
    activation_search: bool = False


@contextmanager
def rounded(
    layer: nn.Module, chosen: Mapping[str, RoundedLinear], changed: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """The layer with some linears rounded and some parameters replaced, by path; put back afterwards."""
    parameters = {f"{path}.weight": one.weight_NK for path, one in chosen.items()} | dict(changed)
    originals = {name: layer.get_parameter(name).data for name in parameters}
    handles = [
        _round_input(layer.get_submodule(path), one, originals[f"{path}.weight"])
        for path, one in chosen.items()
        if one.activations
    ]
    for name, tensor in parameters.items():
        parameter = layer.get_parameter(name)
        parameter.data = tensor.to(parameter.device, parameter.dtype)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, tensor in originals.items():
            layer.get_parameter(name).data = tensor


def _round_input(module: nn.Module, one: RoundedLinear, dense_NK: torch.Tensor) -> Any:
    args = one.activations
    assert args is not None
    if args.outliers is None:
        # Once, not in every forward: a copy from the machine's memory makes the host wait for a GPU.
        scale = None if one.input_scale is None else one.input_scale.to(module.weight.device)
        return module.register_forward_pre_hook(
            lambda _, given: (
                fake_quantize_activation(given[0], args, scale, one.activation_search),
                *given[1:],
            )
        )
    # LLM.int8: columns with outliers are multiplied in high precision, with the dense weight's columns.
    return module.register_forward_hook(lambda own, given, _: _with_outliers(own, given[0], args, dense_NK))


def _with_outliers(module: nn.Module, x: torch.Tensor, args: QuantArgs, dense_NK: torch.Tensor) -> torch.Tensor:
    outliers_K = outlier_columns(x, args)
    regular = fake_quantize_activation(x * ~outliers_K, args, None)
    exact = linear((x * outliers_K), dense_NK)
    return linear(regular, module.weight * ~outliers_K, module.bias) + exact


class Simulation:
    """A quantized checkpoint applied to a decoder's layers while they are in memory."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = QuantizedCheckpoint(folder)
        self.description = self.checkpoint.description
        self._tables: dict[str, torch.Tensor] = {}

    def cache(self, index: int) -> RoundingCache | None:
        """The layer's KV cache, or None where it is left alone."""
        args, attention = self.description.kv_preset, self.description.layers[index].attention
        if args is None or not attention:
            return None
        return RoundingCache(args, self.checkpoint.kv_tensors(attention), rotate=self.description.kv_rotate)

    @contextmanager
    def applied(self, decoder: Decoder, index: int, layer: nn.Module) -> Iterator[None]:
        """The layer as the quantized one computes it; put back afterwards."""
        record = self.description.layers[index]
        paths = module_paths(decoder, index, layer)
        search = self.description.activation_search
        chosen = {
            path: rounded_linear(self.checkpoint, name, search=search)
            for path, name in paths.items()
            if name in record.linears
        }
        with rounded(layer, chosen, changed_parameters(self.checkpoint, decoder, index, record)):
            yield

    @contextmanager
    def around(self, decoder: Decoder) -> Iterator[None]:
        """What lies around the layers as the quantized model has it, embeddings and head; put back afterwards.

        Source and result may share a decoder, so it lasts for as long as the result computes with them.
        """
        parameters = table_parameters(self.description, decoder)
        originals = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            if name not in self._tables:
                self._tables[name] = self.checkpoint.weight(name).to(parameter.device, parameter.dtype)
            parameter.data = self._tables[name]
        try:
            yield
        finally:
            for name, tensor in originals.items():
                parameters[name].data = tensor

    @contextmanager
    def cached(self, decoder: Decoder, index: int, layer: nn.Module) -> Iterator[None]:
        """The layer's keys and values rounded when the whole model runs, with or without a cache that keeps them."""
        rounding = self.cache(index)
        if rounding is None or not decoder.has_key_value_cache(index):
            yield
            return

        def round_cache(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            name = decoder.cache_name(named)
            return given, {**named, name: rounding if named[name] is None else RoundedCache(named[name], rounding)}

        handle = layer.register_forward_pre_hook(round_cache, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def plain(self, decoder: Decoder, index: int, layer: nn.Module, probe: State) -> Iterator[None]:
        """The same formats with plain max scales and rounding to nearest: what the search is compared with."""
        record, paths = self.description.layers[index], module_paths(decoder, index, layer)
        chosen: dict[str, RoundedLinear] = {}
        for group in fused_groups(decoder, index, layer, probe):
            kept = {path: paths[path] for path in group if paths[path] in record.linears}
            for scheme in dict.fromkeys(record.linears[name].scheme for name in kept.values()):
                alike = {path: name for path, name in kept.items() if record.linears[name].scheme == scheme}
                chosen |= self._plainly_rounded(layer, alike, decoder.stored_dtype)
        with rounded(layer, chosen, {}):
            yield

    def _plainly_rounded(
        self, layer: nn.Module, kept: Mapping[str, str], dtype: torch.dtype
    ) -> dict[str, RoundedLinear]:
        scheme = self.checkpoint.scheme(next(iter(kept.values())))
        weights = [layer.get_submodule(path).weight.float() for path in kept]
        found = find_scales(weights, scheme.weights, "max", dtype)
        return {
            path: RoundedLinear(
                fake_quantize(weight, scales, scheme.weights), scheme.activations, self._plain_scale(name, dtype)
            )
            for (path, name), weight, scales in zip(kept.items(), weights, found, strict=True)
        }

    def _plain_scale(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """The input's scale in a model whose channels were not smoothed."""
        args, amax = self.checkpoint.scheme(name).activations, self.description.linears[name].input_amax
        return static_scale(amax, args, dtype) if args and amax is not None else None


def as_quantized(decoder: Decoder) -> ExitStack:
    """Let a model that is in memory as a whole compute what its quantized form will, until the stack is closed or
    nobody keeps it any more; nothing changes for a checkpoint that is not quantized."""
    held, folder = ExitStack(), decoder.reader.folder
    if load_quantization(folder):
        simulation = Simulation(folder)
        held.enter_context(simulation.around(decoder))
        for index, layer in enumerate(decoder.layers):
            held.enter_context(simulation.applied(decoder, index, layer))
            held.enter_context(simulation.cached(decoder, index, layer))
    return held


def rounded_linear(checkpoint: QuantizedCheckpoint, name: str, *, search: bool) -> RoundedLinear:
    """What a linear layer of a quantized checkpoint computes with."""
    activations = checkpoint.scheme(name).activations
    return RoundedLinear(checkpoint.weight(name), activations, checkpoint.input_scale(name), search)


def table_parameters(description: Quantization, decoder: Decoder) -> dict[str, nn.Parameter]:
    """A decoder's parameter for each quantized table; tied ones share it."""
    own = decoder.names.own_modules
    return {name: decoder.model.get_parameter(f"{own[name]}.weight") for name in description.tables}


def module_paths(decoder: Decoder, index: int, layer: nn.Module) -> dict[str, str]:
    """The layer's linears: path in the layer to module name in the checkpoint."""
    prefix = decoder.layer_name(index)
    return {path: decoder.names.stored_module(f"{prefix}.{path}") for path in linears(layer)}


def changed_parameters(
    checkpoint: QuantizedCheckpoint, decoder: Decoder, index: int, record: QuantizedLayer
) -> dict[str, torch.Tensor]:
    """Parameters that are not quantized but differ from the dense layer's, by their path in the layer."""
    names, found = decoder.names, {}
    tensors = {stored: checkpoint.tensor(stored) for stored in record.changed}
    for path, _ in decoder.layers[index].named_parameters():
        name = f"{decoder.layer_name(index)}.{path}"
        source = names.sources.get(name)
        if (own := names.stored_name.get(name)) in tensors:
            found[path] = tensors[own]
        elif source and source.part and source.stored in tensors:  # an expert in a tensor that holds all of them
            found[path] = source.of(tensors[source.stored])
    return found
