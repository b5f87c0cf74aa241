"""A decoder layer that computes what the quantized one will: rounded weights, rounded inputs, a rounded KV cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from optcore.algorithms.activations import fake_quantize_activation
from optcore.algorithms.scales import Scales, fake_quantize, find_scales
from optcore.errors import BadCheckpoint
from optcore.quantization import SCALES, Quantization, load_quantization
from optcore.streaming.cache import RoundingCache
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import fused_groups, linears


class Simulation:
    """A quantized checkpoint's scales, applied to a decoder's layers while they are in memory."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        description = load_quantization(folder)
        if description is None:
            raise BadCheckpoint(f"{folder.name} is not a quantized checkpoint")
        self.description: Quantization = description
        self.tensors = load_file(folder / SCALES, device=str(device or "cpu"))
        self._modules = frozenset(description.modules)

    def scales(self, name: str) -> Scales:
        """The stored weight scales of a linear layer."""
        return Scales(self.tensors[f"{name}.weight_scale"], self.tensors.get(f"{name}.weight_global_scale"))

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The stored activation scale of a linear layer, if its format has one."""
        return self.tensors.get(f"{name}.input_global_scale", self.tensors.get(f"{name}.input_scale"))

    def weight(self, name: str, weight_NK: torch.Tensor) -> torch.Tensor:
        """What a weight decodes to after export, float32."""
        return fake_quantize(weight_NK.float(), self.scales(name), self.description.preset.weights)

    def cache(self, index: int) -> RoundingCache | None:
        """The layer's KV cache, or None where it is left alone."""
        args = self.description.kv_preset
        if args is None or not self.description.attentions:
            return None
        attention = self.description.attentions[index]
        return RoundingCache(args, self.tensors[f"{attention}.k_scale"], self.tensors[f"{attention}.v_scale"])

    @contextmanager
    def applied(self, decoder: Decoder, index: int, layer: nn.Module) -> Iterator[None]:
        """The layer with its quantized linears rounded; put back afterwards."""
        chosen = self._chosen(decoder, index, layer)
        rounded = {path: self.weight(name, layer.get_submodule(path).weight) for path, name in chosen.items()}
        with self._rounded(layer, chosen, rounded):
            yield

    @contextmanager
    def plain(self, decoder: Decoder, index: int, layer: nn.Module, probe: State) -> Iterator[None]:
        """The same format with plain max scales for the weights: what the scale search is compared with."""
        chosen = self._chosen(decoder, index, layer)
        rounded: dict[str, torch.Tensor] = {}
        for group in fused_groups(decoder, index, layer, probe):
            kept = [path for path in group if path in chosen]
            rounded |= self._plainly_rounded(layer, kept, decoder.stored_dtype) if kept else {}
        with self._rounded(layer, chosen, rounded):
            yield

    @contextmanager
    def _rounded(self, layer: nn.Module, chosen: dict[str, str], rounded: dict[str, torch.Tensor]) -> Iterator[None]:
        modules = {path: layer.get_submodule(path) for path in chosen}
        originals = {path: module.weight.data for path, module in modules.items()}
        handles = [self._round_inputs(modules[path], name) for path, name in chosen.items()]
        for path, module in modules.items():
            module.weight.data = rounded[path].to(originals[path].dtype)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for path, module in modules.items():
                module.weight.data = originals[path]

    def _plainly_rounded(self, layer: nn.Module, paths: list[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        args = self.description.preset.weights
        weights = [layer.get_submodule(path).weight.float() for path in paths]
        found = find_scales(weights, args, "max", dtype)
        return {p: fake_quantize(w, scales, args) for p, w, scales in zip(paths, weights, found, strict=True)}

    def _chosen(self, decoder: Decoder, index: int, layer: nn.Module) -> dict[str, str]:
        """The layer's quantized linears: path in the layer to name in the checkpoint."""
        prefix = decoder.layer_name(index)
        names = {path: decoder.names.stored_module(f"{prefix}.{path}") for path in linears(layer)}
        return {path: name for path, name in names.items() if name in self._modules}

    def _round_inputs(self, module: nn.Module, name: str) -> Any:
        args, scale = self.description.preset.activations, self.input_scale(name)
        if args is None:
            return module.register_forward_pre_hook(lambda *_: None)
        return module.register_forward_pre_hook(
            lambda _, given: (fake_quantize_activation(given[0], args, scale), *given[1:])
        )
