"""The model that trains: a checkpoint as a whole in memory, its quantized layers simulated with a gradient.

Modules and parameters are transformers' own, but for experts, which are linear layers of their own here; so every
architecture that can be streamed can be trained, and names lead back to the checkpoint's tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from optcore.algorithms.codes import decode
from optcore.algorithms.kv_cache import rotated
from optcore.algorithms.lattice import lattice
from optcore.quantization import Quantization, load_quantization
from optcore.streaming.cache import RoundingCache
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import changed_parameters, module_paths, table_parameters
from optcore.training.fake_quant import FakeQuantLinear, ScalePolicy
from optcore.training.masters import master_weight


class Student:
    """A model in memory; `model` is what trains. Nothing of it requires a gradient until a scope says so."""

    def __init__(
        self, folder: Path, device: torch.device | None = None, held: Callable[[nn.Module], None] | None = None
    ) -> None:
        """`held` is given each layer as soon as it is in memory, to make it smaller before the next one is read."""
        self.folder = folder
        self.decoder = Decoder(folder, device, torch.float32)  # masters, whatever matrices are multiplied in
        self.model = self.decoder.load_all(held)
        self.description: Quantization | None = None
        self.linears: dict[str, FakeQuantLinear] = {}
        """Simulated layers by their name in the checkpoint."""
        self.adapters: dict[str, Any] = {}
        """PEFT's modules, where adapters train, by the name of the linear layer in the checkpoint."""

    @property
    def layers(self) -> nn.ModuleList:
        """The repeated layers."""
        return self.decoder.layers

    def simulate(self, policy: ScalePolicy) -> None:
        """Quantize as the checkpoint's description says, with masters that start at exactly its codes."""
        self.description = load_quantization(self.folder)
        quantized = QuantizedCheckpoint(self.folder, self.description)
        groups = self._fused_groups()
        for index in range(len(self.decoder)):
            self.linears |= simulate_layer(self.decoder, index, self.layers[index], quantized, policy, groups[index])
        for name, parameter in table_parameters(quantized.description, self.decoder).items():
            parameter.data = quantized.weight(name).to(parameter.device, parameter.dtype)
        if quantized.description.kv_preset:
            self._round_keys_and_values(quantized)

    def recompute_layers(self) -> None:
        """Gradient checkpointing: a layer's activations are computed again in the backward pass instead of kept."""
        for layer in self.layers:
            layer.forward = partial(_recomputed, layer.forward)

    def plain_parameters(self, index: int) -> Iterator[tuple[str, nn.Parameter]]:
        """Of a layer: checkpoint name and value of every parameter that is not the weight of a simulated linear."""
        return plain_parameters(self.decoder, index, self.layers[index], self.linears)

    def _fused_groups(self) -> list[list[list[str]]]:
        probe = probe_state(self.decoder)
        with torch.no_grad():
            return [fused_groups(self.decoder, index, layer, probe) for index, layer in enumerate(self.layers)]

    def _round_keys_and_values(self, quantized: QuantizedCheckpoint) -> None:
        description = quantized.description
        args = description.kv_preset
        assert args
        for index, layer in enumerate(self.layers):
            if attention := description.layers[index].attention:
                cache = TrainingCache(args, quantized.kv_tensors(attention), rotate=description.kv_rotate)
                layer.forward = with_cache(layer.forward, cache)


def simulate_layer(
    decoder: Decoder,
    index: int,
    layer: nn.Module,
    quantized: QuantizedCheckpoint,
    policy: ScalePolicy,
    groups: Sequence[Sequence[str]],
) -> dict[str, FakeQuantLinear]:
    """Replace a layer's quantized linears, `groups` of which engines fuse; what took their place, by checkpoint name.

    `layer` is the decoder's, or a copy of it.
    """
    record, paths = quantized.description.layers[index], module_paths(decoder, index, layer)
    found = {
        name: _replaced(layer, path, name, quantized, policy) for path, name in paths.items() if name in record.linears
    }
    for path, tensor in changed_parameters(quantized, decoder, index, record).items():
        if path.removesuffix(".weight") not in paths or paths[path.removesuffix(".weight")] not in record.linears:
            parameter = layer.get_parameter(path)
            parameter.data = tensor.to(parameter.device, parameter.dtype)
    for group in groups:
        fused = [layer.get_submodule(path) for path in group]
        for module in fused:
            if isinstance(module, FakeQuantLinear):
                module.siblings = partial(_of_one_format, fused, module)
    return found


def plain_parameters(
    decoder: Decoder, index: int, layer: nn.Module, linears: Mapping[str, FakeQuantLinear]
) -> Iterator[tuple[str, nn.Parameter]]:
    """Checkpoint name and value of every parameter of a layer that is not the weight of one of its `linears`."""
    names, simulated = decoder.names, {id(module.weight) for module in linears.values()}
    for path, parameter in layer.named_parameters():
        stored = names.stored_name.get(f"{decoder.layer_name(index)}.{plain_path(path)}")
        if stored and id(parameter) not in simulated:
            yield stored, parameter


class TrainingCache(RoundingCache):
    """Rounds keys and values in the forward pass, and lets their gradients pass."""

    def _round(self, kind: str, states: torch.Tensor, *, rotate: bool = False) -> torch.Tensor:
        plain = rotated(states) if rotate else states
        return plain + (super()._round(kind, states.detach(), rotate=rotate) - plain).detach()


def with_cache(forward: Callable[..., Any], cache: RoundingCache) -> Callable[..., Any]:
    """A layer's forward that is given a cache of its own, past the model, whose masks know of none."""

    def call(*given: Any, **named: Any) -> Any:
        return forward(*given, **{**named, "past_key_values": cache})

    return call


def plain_path(path: str) -> str:
    """A parameter's path as it is without adapters."""
    return path.replace(".base_layer.", ".")


def _recomputed(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """A layer's forward that keeps no activations; where there is no backward pass, such as in generation, as it is."""
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)


def _of_one_format(fused: Sequence[nn.Module], module: FakeQuantLinear) -> list[nn.Linear]:
    """The siblings that share what one number serves for all of them."""
    return [one for one in fused if isinstance(one, FakeQuantLinear) and one.scheme == module.scheme]


def _replaced(
    layer: nn.Module, path: str, name: str, quantized: QuantizedCheckpoint, policy: ScalePolicy
) -> FakeQuantLinear:
    plain: nn.Linear = layer.get_submodule(path)
    scheme = quantized.scheme(name)
    codes_NK, scales = quantized.codes(name)
    decoded_NK = decode(codes_NK, scales, scheme.weights)
    dense_NK = plain.weight.data.cpu()
    start_NK = master_weight(dense_NK, decoded_NK, lattice(scales, scheme.weights, tuple(dense_NK.shape)))
    plain.weight.data = start_NK.to(plain.weight.device)
    module = FakeQuantLinear(
        plain,
        scheme,
        scales,
        input_scale=quantized.input_scale(name),
        search_activations=quantized.description.activation_search,
        policy=policy,
    )
    if module.bias is not None and f"{name}.bias" in quantized.names:
        module.bias.data = quantized.tensor(f"{name}.bias").to(module.bias.device, module.bias.dtype)
    parent, _, leaf = path.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, module)
    return module


def small_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Norms and biases: parameters with one dimension."""
    return [parameter for parameter in model.parameters() if parameter.ndim == 1]
