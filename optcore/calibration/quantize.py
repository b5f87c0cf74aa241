"""Post-training quantization in one pass over the decoder layers: measure inputs, find scales, go on."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optcore.algorithms.activations import static_scale
from optcore.algorithms.scales import Scales, find_scales
from optcore.calibration.observers import InputObserver
from optcore.calibration.text import Texts
from optcore.errors import BadCheckpoint, RecipeError
from optcore.links import link_checkpoint
from optcore.quantization import SCALES, Quantization
from optcore.schemes import KV_CACHE_PRESETS
from optcore.streaming.cache import ObservingCache
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, linears, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.match import is_matched

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.ptq import Ptq


def quantize_checkpoint(run: "Run", technique: "Ptq") -> None:
    """Write the quantized checkpoint of `run.checkpoint` to `run.out`; weights stay as they are, scales are added."""
    decoder = Decoder(run.checkpoint)
    pass_ = _Pass(decoder, technique)
    hidden = _calibration_states(run, decoder, technique)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            pass_.quantize_layer(index, layer, hidden)
        run.progress("calibrating" if hidden else "searching", index + 1, len(decoder))
    link_checkpoint(run.checkpoint, run.out)
    save_file({name: tensor.cpu() for name, tensor in pass_.tensors.items()}, run.out / SCALES)
    pass_.description().save(run.out)


def _calibration_states(run: "Run", decoder: Decoder, technique: "Ptq") -> HiddenStates | None:
    """The calibration set's hidden states, or nothing when no scale depends on them."""
    if not technique.preset.needs_calibration and not technique.kv_cache:
        return None
    if technique.kv_cache and getattr(decoder.model.config.get_text_config(), "kv_lora_rank", None):
        raise RecipeError(
            "the model caches a latent (MLA), whose scales are not those of keys and values",
            remedy="leave `kv_cache` out",
            field="/chain",
        )
    longest = decoder.longest_sequence
    if run.calibration.sequence_length > longest:
        run.notice(f"calibration.sequence_length cut to {longest}, the most that the model holds")
    windows_ST = Texts(run.source, run.calibration, run.data_files).calibration_windows(longest)
    if len(windows_ST) < run.calibration.samples:
        run.notice(f"the data set has {len(windows_ST)} windows, not {run.calibration.samples}")
    return HiddenStates(decoder, windows_ST, run.scratch)


class _Pass:
    """Collects scales layer by layer."""

    def __init__(self, decoder: Decoder, technique: "Ptq") -> None:
        self.decoder = decoder
        self.technique = technique
        self.tensors: dict[str, torch.Tensor] = {}
        self._modules: list[str] = []
        self._attentions: list[str] = []
        self._probe = probe_state(decoder)

    def description(self) -> Quantization:
        """What was done, for the checkpoint."""
        return Quantization(
            scheme=self.technique.scheme,
            scale_search=self.technique.scale_search,
            kv_cache=self.technique.kv_cache,
            modules=tuple(self._modules),
            ignored=self._left_alone(),
            attentions=tuple(self._attentions),
        )

    def quantize_layer(self, index: int, layer: nn.Module, hidden: HiddenStates | None) -> None:
        """Measure the layer's inputs, then find scales group by group."""
        observer = InputObserver(linears(layer))
        groups = fused_groups(self.decoder, index, layer, self._probe)
        if hidden:
            self._observe(index, layer, hidden, observer)
        for group in groups:
            self._quantize_group(index, layer, self._kept(index, group), observer)

    def _observe(self, index: int, layer: nn.Module, hidden: HiddenStates, observer: InputObserver) -> None:
        cache = ObservingCache() if self.technique.kv_cache else None
        with observer:
            hidden.advance(index, layer, cache)
        if cache and self.technique.kv_cache:
            attention = self._attention_name(index, layer)
            args = KV_CACHE_PRESETS[self.technique.kv_cache]
            self._attentions.append(attention)
            self.tensors[f"{attention}.k_scale"] = static_scale(cache.keys_amax, args, self.decoder.stored_dtype)
            self.tensors[f"{attention}.v_scale"] = static_scale(cache.values_amax, args, self.decoder.stored_dtype)

    def _attention_name(self, index: int, layer: nn.Module) -> str:
        """The attention module's name in the checkpoint. transformers gives it the index of its layer's cache."""
        attention = next((name for name, module in layer.named_modules() if name and hasattr(module, "layer_idx")), "")
        inside = next((path for path in linears(layer) if attention and path.startswith(f"{attention}.")), None)
        if inside is None:
            raise RecipeError(
                f"layer {index} has no attention whose keys and values could be measured",
                remedy="leave `kv_cache` out",
                field="/chain",
            )
        return self._stored(index, inside).removesuffix(inside.removeprefix(attention))

    def _kept(self, index: int, group: list[str]) -> list[str]:
        """The group without the layers that the recipe ignores."""
        kept = [path for path in group if not is_matched(self._stored(index, path), self.technique.ignore)]
        if 0 < len(kept) < len(group):
            names = ", ".join(self._stored(index, path) for path in group)
            raise RecipeError(
                f"`ignore` takes a part of {names}, which engines fuse into one matrix",
                remedy="ignore all of them or none",
                field="/chain",
            )
        return kept

    def _left_alone(self) -> tuple[str, ...]:
        """Every matrix that was not quantized, routers and the head included: engines take some of them for linears."""
        reader, known = self.decoder.reader, {*self._modules, *self.decoder.embeddings}
        matrices = (name for name in reader.names if name.endswith(".weight") and len(reader.shape(name)) == 2)
        return tuple(name.removesuffix(".weight") for name in matrices if name.removesuffix(".weight") not in known)

    def _quantize_group(self, index: int, layer: nn.Module, group: list[str], observer: InputObserver) -> None:
        if not group:
            return
        weights = [layer.get_submodule(path).weight.float() for path in group]
        names = [self._stored(index, path) for path in group]
        self._check(names, weights)
        method, dtype = self.technique.scale_search, self.decoder.stored_dtype
        found = find_scales(weights, self.technique.preset.weights, method, dtype)
        for path, name, scales in zip(group, names, found, strict=True):
            self._modules.append(name)
            self._add_weight_scales(name, scales)
            self._add_input_scale(name, observer.amax(path))

    def _add_weight_scales(self, name: str, scales: Scales) -> None:
        self.tensors[f"{name}.weight_scale"] = scales.scale.clone()  # siblings share it; files cannot
        if scales.global_scale is not None:
            self.tensors[f"{name}.weight_global_scale"] = scales.global_scale.clone()

    def _add_input_scale(self, name: str, amax: float) -> None:
        args = self.technique.preset.activations
        if args is None or not self.technique.preset.needs_calibration:
            return
        kind = "input_global_scale" if args.strategy == "tensor_group" else "input_scale"
        self.tensors[f"{name}.{kind}"] = static_scale(amax, args, self.decoder.stored_dtype)

    def _check(self, names: Iterable[str], weights: Iterable[torch.Tensor]) -> None:
        size = self.technique.preset.weights.group_size
        for name, weight in zip(names, weights, strict=True):
            if size and weight.shape[1] % size:
                raise RecipeError(
                    f"{name} has {weight.shape[1]} inputs, which groups of {size} do not divide",
                    remedy=f"add it to `ignore`, or choose another scheme than {self.technique.scheme}",
                    field="/chain",
                )
            if not weight.isfinite().all():
                raise BadCheckpoint(f"{name} holds values that are not finite", field="/model")

    def _stored(self, index: int, path: str) -> str:
        return self.decoder.names.stored_module(f"{self.decoder.layer_name(index)}.{path}")


def read_scales(folder: Path) -> dict[str, torch.Tensor]:
    """Scales of a quantized checkpoint by name."""
    return load_file(folder / SCALES)
