"""One decoder layer quantized, from its weights and the statistics of its inputs alone.

    smooth the channels (fold into what comes before)  ->  for each fused group: scales  ->  rounding  ->  codes

Nothing here runs the layer, so the cost does not grow with the number of calibration tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.algorithms.activations import static_scale
from optcore.algorithms.awq import awq_scales
from optcore.algorithms.smoothing import Consumer, smoothquant_scales, smoothquant_search
from optcore.calibration.assignment import Assignment, all_experts
from optcore.calibration.devices import computing_devices
from optcore.calibration.reconstruction import lost_share
from optcore.calibration.rounding import Fused, Rounding, round_weights
from optcore.calibration.statistics import InputStatistics, largest_magnitudes
from optcore.importance import Importance
from optcore.quantization import QuantizedLinear
from optcore.schemes import Scheme
from optcore.streaming.simulate import RoundedLinear, rounded
from optcore.streaming.structure import Fold

if TYPE_CHECKING:
    from optcore.techniques.ptq import Quantizing

Statistics = Mapping[tuple[str, ...], InputStatistics]


@dataclass
class Quantized:
    """What became of a layer."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Packed weights and scales, by name in the checkpoint."""
    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    simulated: dict[str, RoundedLinear] = field(default_factory=dict)
    """By path in the layer."""
    changed: set[str] = field(default_factory=set)
    """Paths of parameters that took a scale and were not quantized."""
    importance: dict[str, Importance] = field(default_factory=dict)
    """Of the inputs of quantized weights, by name in the checkpoint."""


class LayerQuantizer:
    """Quantizes a layer in memory; its smoothed parameters stay changed, its weights are not rounded in place."""

    def __init__(
        self,
        layer: nn.Module,
        names: Mapping[str, str],
        technique: "Quantizing",
        dtype: torch.dtype,
        assignment: Assignment,
        devices: Sequence[torch.device] | None = None,
    ) -> None:
        """Rounding is spread over `devices`, the first of which has the layer; over all GPUs where none are given."""
        self.done = Quantized()
        self._layer = layer
        self._names = names
        self._technique = technique
        self._dtype = dtype
        self._assignment = assignment
        self._devices = devices or computing_devices(next(layer.parameters()).device)
        self._plain_amax: dict[tuple[str, ...], float] = {}

    def smooth(self, folds: Sequence[Fold], statistics: Statistics) -> Statistics:
        """Fold channel scales into what comes before; the statistics of the smoothed inputs."""
        self._plain_amax = _input_amax(statistics)
        smoothed = dict(statistics)
        for fold in folds:
            self._smooth(fold, smoothed)
        changed = [path for path in self.done.changed if not path.endswith(".weight") or not self._format(path)]
        for path in changed:  # what is computed with from here on is what will be stored
            parameter = self._layer.get_parameter(path)
            parameter.data = parameter.data.to(self._dtype).to(parameter.dtype)
        self.done.changed = set(changed)
        return smoothed

    def quantize(self, groups: Sequence[Sequence[str]], statistics: Statistics) -> None:
        """Quantize the groups that have a format. Groups are fused siblings, by path."""
        found = {tuple(group): statistics.get(tuple(group), InputStatistics()) for group in groups}
        amax = _input_amax(found)
        fused = [
            (group, Fused({path: self._layer.get_submodule(path).weight for path in members}, scheme, measured))
            for group, measured in found.items()
            for scheme, members in self._by_format(group)
        ]
        made = round_weights([one for _, one in fused], self._technique, self._dtype, self._devices)
        for group, one in fused:
            for path in one.weights:
                self._add(path, one.scheme, made[path], one.found, (amax[group], self._plain_amax.get(group)))

    def applied(self) -> AbstractContextManager[None]:
        """The layer with what was quantized so far rounded."""
        return rounded(self._layer, self.done.simulated, {})

    def lost_shares(self) -> Iterator[torch.Tensor | float]:
        """What rounding lost of each linear's outputs: GPTQ's own loss, or what the inputs' mean squares say of it."""
        for path, one in self.done.simulated.items():
            name = self._names[path]
            loss, importance = self.done.linears[name].loss, self.done.importance.get(name)
            if loss is not None:
                yield loss
            else:
                weight_NK = self._layer.get_submodule(path).weight
                yield lost_share(weight_NK, one.weight_NK, importance and importance.mean_square_K)

    def _by_format(self, group: Sequence[str]) -> list[tuple[Scheme, list[str]]]:
        """Members of a group that have a format, those of one together: mixes give values more bits than queries."""
        found: dict[str, tuple[Scheme, list[str]]] = {}
        for path in group:
            if scheme := self._assignment[self._names[path]]:
                found.setdefault(scheme.name, (scheme, []))[1].append(path)
        return list(found.values())

    def _format(self, parameter: str) -> Scheme | None:
        """The number format of a weight, by its path as a parameter."""
        path = parameter.removesuffix(".weight")
        return self._assignment[self._names[path]] if path in self._names else None

    def _smooth(self, fold: Fold, statistics: dict[tuple[str, ...], InputStatistics]) -> None:
        # Of a mix: the search tries one format, and that of the first consumer is as good as another's.
        scheme = next((found for path in fold.consumers if (found := self._assignment[self._names[path]])), None)
        consumers = [Consumer(self._weights(group), statistics[group]) for group in fold.groups if group in statistics]
        if scheme is None or self._has_dense_columns(fold) or not any(consumer.found.tokens for consumer in consumers):
            return
        scale_K = self._smoothing_scale(fold, scheme, consumers)
        if bool((scale_K == 1).all()):
            return
        scale_K = fold.apply(self._layer, scale_K, self._dtype)
        for group in fold.groups:
            statistics[group] = statistics[group].scaled(scale_K)
        self.done.changed |= {*fold.changed, *(f"{path}.weight" for path in fold.consumers)}

    def _has_dense_columns(self, fold: Fold) -> bool:
        """Whether outlier inputs will meet a weight of the dense checkpoint (LLM.int8): that one takes no scale."""
        found = (self._format(f"{path}.weight") for path in (fold.producer, *fold.consumers))
        return any(scheme.activations and scheme.activations.outliers is not None for scheme in found if scheme)

    def _smoothing_scale(self, fold: Fold, scheme: Scheme, consumers: list[Consumer]) -> torch.Tensor:
        technique, method = self._technique, self._technique.scale_search
        if technique.smoothing == "awq":
            return awq_scales(consumers, scheme, self._dtype, fold.tie, method).scale_K
        if technique.smoothing_alpha == "auto":
            return smoothquant_search(consumers, scheme, self._dtype, fold.tie, method).scale_K
        return fold.tie(smoothquant_scales(consumers, technique.smoothing_alpha))

    def _add(
        self,
        path: str,
        scheme: Scheme,
        rounding: Rounding,
        found: InputStatistics,
        amax: tuple[float, float | None],
    ) -> None:
        """`amax` is the largest magnitude of the input, smoothed and as it was in the original model."""
        name = self._names[path]
        self.done.tensors |= {f"{name}.{suffix}": tensor.clone() for suffix, tensor in rounding.stored.items()}
        input_scale = self._input_scale(name, scheme, amax[0])
        self.done.simulated[path] = RoundedLinear(
            rounding.weight_NK, scheme.activations, input_scale, self._technique.activation_search
        )
        self.done.linears[name] = QuantizedLinear(
            scheme=scheme.name,
            digest=rounding.digest,
            loss=rounding.loss,
            tokens=None if amax[1] is None else found.tokens,
            input_amax=amax[1],
            fallback=rounding.fallback,
        )
        if found.importance_K is not None:
            self.done.importance[name] = Importance(found.importance_K.clone(), found.tokens)

    def _input_scale(self, name: str, scheme: Scheme, amax: float) -> torch.Tensor | None:
        args = scheme.activations
        if args is None or not scheme.needs_calibration:
            return None
        kind = "input_global_scale" if args.strategy == "tensor_group" else "input_scale"
        scale = static_scale(amax, args, self._dtype)
        self.done.tensors[f"{name}.{kind}"] = scale
        return scale

    def _weights(self, group: Sequence[str]) -> list[torch.Tensor]:
        return [self._layer.get_submodule(path).weight.float() for path in group]


def _input_amax(statistics: Statistics) -> dict[tuple[str, ...], float]:
    """Largest magnitude of each input. All experts of a layer share one, whoever got the tokens: engines keep one."""
    together: dict[str, float] = {}
    for group, amax in zip(statistics, largest_magnitudes(statistics.values()), strict=True):
        key = all_experts(group[0])
        together[key] = max(together.get(key, 0.0), amax)
    return {group: together[all_experts(group[0])] for group in statistics}
