"""One-shot sparsity in one pass over the decoder layers: measure inputs, set weights to zero, write, go on.

A layer's linears are measured together, on what the sparse layers before it give. Scores and values come from the
weights as stored, in float32; the layer that goes on computes with the new ones, rounded as they are stored.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.algorithms.sparsity import Budget, outlier_share, owl_ratios, wanda_scores
from optcore.calibration.propagate import calibration_windows
from optcore.calibration.reconstruction import lost_share, tell_layer
from optcore.calibration.statistics import InputStatistics, Observer
from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.sparse_linear import sparsified
from optcore.sparsity import UNSTRUCTURED, SparseTensor, Sparsity, accelerated_by
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.match import is_matched, time_limit, unmatched
from optcore.streaming.rewrite import write_outside
from optcore.streaming.simulate import module_paths
from optcore.streaming.writer import TensorWriter
from optcore.techniques.sparsify import OWL_SPREAD

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.sparsify import Sparsify

_OWL_THRESHOLD = 5.0
Statistics = Mapping[tuple[str, ...], InputStatistics]


@torch.no_grad()
def sparsify_checkpoint(run: "Run", technique: "Sparsify") -> None:
    """Write `run.checkpoint` with zeros in its linear layers to `run.out`, with `sparsity.json`.

    Raises `RecipeError`, before any text is read, for inputs that groups do not divide, an `ignore` that matches
    nothing, and a recipe that leaves no layer.
    """
    _Pass(run, technique).walk()


class _Pass:
    """Walks through the layers once; with OWL, once more before that."""

    def __init__(self, run: "Run", technique: "Sparsify") -> None:
        self._run = run
        self._technique = technique
        self._decoder = Decoder(run.checkpoint)
        self._probe = probe_state(self._decoder)
        self._generator = torch.Generator().manual_seed(run.seed)
        self._tensors: dict[str, SparseTensor] = {}
        self._fallbacks: dict[str, str] = {}
        self._lost: list[torch.Tensor] = []
        """Of each linear of the current layer."""
        self._chosen = self._check()

    def walk(self) -> None:
        """Go through the layers, write what is outside them, describe the result."""
        ratios = self._ratios()
        states = self._states() if self._technique.measures else None
        writer = TensorWriter(self._run.out)
        write_outside(self._decoder, writer, {})
        for index in range(len(self._decoder)):
            with self._decoder.layer(index, keep_stored=True) as layer:
                for name, tensor in self._sparsified(index, layer, states, ratios[index]).items():
                    writer.add(name, tensor)
                if states:
                    states.advance(index, layer)
            tell_layer(self._run, index, self._lost)
            self._lost.clear()
            self._run.progress("calibrating" if states else "searching", index + 1, len(self._decoder))
        writer.close()
        link_companions(self._run.checkpoint, self._run.out)
        self._describe()

    def _check(self) -> set[str]:
        """Names of the linears that will be sparsified."""
        modules = [
            (name, self._decoder.layers[index].get_submodule(path).in_features)
            for index in range(len(self._decoder))
            for path, name in module_paths(self._decoder, index, self._decoder.layers[index]).items()
        ]
        with time_limit():
            if lost := unmatched(self._technique.ignore, (name for name, _ in modules)):
                raise _refused(
                    f"{lost[0]!r} matches no linear layer of the decoder", "write names as in the checkpoint"
                )
            chosen = {name: inputs for name, inputs in modules if not is_matched(name, self._technique.ignore)}
        if not chosen:
            raise _refused("no linear layer is left to sparsify", "let `ignore` leave at least one")
        _, m = self._technique.group or (1, 1)
        for name, inputs in chosen.items():
            if inputs % m:
                remedy = "add it to `ignore`, or choose another pattern"
                raise _refused(f"{name} has {inputs} inputs, which groups of {m} do not divide", remedy)
        return set(chosen)

    def _states(self) -> HiddenStates:
        return HiddenStates(self._decoder, self._windows_ST, self._run.scratch)

    @cached_property
    def _windows_ST(self) -> torch.Tensor:
        """The calibration set's tokens, which OWL walks over twice."""
        return calibration_windows(self._run, self._decoder)

    def _groups(self, index: int, layer: nn.Module) -> list[list[str]]:
        """Paths of the linears to sparsify, those with a common input together."""
        names = module_paths(self._decoder, index, layer)
        groups = fused_groups(self._decoder, index, layer, self._probe)
        left = ([path for path in group if names[path] in self._chosen] for group in groups)
        return [group for group in left if group]

    def _measured(
        self, index: int, layer: nn.Module, groups: Sequence[Sequence[str]], states: HiddenStates
    ) -> Statistics:
        observer = Observer(layer, groups, gram=True)
        for _, state in states.states():
            with observer.measuring(to_the_end=False):
                self._decoder.forward(index, layer, state)
        return observer.finished()

    def _ratios(self) -> list[float]:
        """Each layer's share of zeros."""
        ratio = self._technique.share
        if not self._technique.owl:
            return [ratio] * len(self._decoder)
        states, outliers = self._states(), []
        for index in range(len(self._decoder)):
            with self._decoder.layer(index) as layer:
                found = self._measured(index, layer, self._groups(index, layer), states)
                scores = [
                    wanda_scores(layer.get_submodule(path).weight.float(), one.importance_K)
                    for group, one in found.items()
                    for path in group
                    if one.importance_K is not None
                ]
                outliers.append(outlier_share(scores, _OWL_THRESHOLD) if scores else 0.0)
                states.advance(index, layer)
        ratios = owl_ratios(outliers, ratio, OWL_SPREAD)
        self._run.results["layer_ratios"] = ratios
        return ratios

    def _sparsified(
        self, index: int, layer: nn.Module, states: HiddenStates | None, ratio: float
    ) -> dict[str, torch.Tensor]:
        """The layer's tensors with their new values, which the layer has then too."""
        groups = self._groups(index, layer)
        found = self._measured(index, layer, groups, states) if states and groups else {}
        stored = dict(self._decoder.stored_tensors(index))
        changed: dict[str, set[str]] = {}
        for group in groups:
            statistics = found.get(tuple(group), InputStatistics())
            for path in group:
                name = f"{self._decoder.layer_name(index)}.{path}.weight"
                source = self._decoder.names.sources[name]
                if source.stored not in changed:
                    stored[source.stored] = stored[source.stored].clone()
                values = source.of(stored[source.stored])
                values.copy_(self._sparse(name, values, statistics, ratio))
                parameter = layer.get_parameter(f"{path}.weight")
                parameter.data = values.to(parameter.device, parameter.dtype, copy=True)
                changed.setdefault(source.stored, set()).add(name)
        for stored_name, parameters in changed.items():
            self._count(stored_name, stored[stored_name], parameters)
        return stored

    def _sparse(self, name: str, stored_NK: torch.Tensor, statistics: InputStatistics, ratio: float) -> torch.Tensor:
        weight_NK = stored_NK.to(self._decoder.device, torch.float32)
        budget = Budget(ratio, self._technique.group)
        sparse_NK, fallback = sparsified(weight_NK, statistics, budget, self._technique, self._generator)
        if fallback:
            self._fallbacks[self._decoder.names.stored_name[name].removesuffix(".weight")] = fallback
        self._lost.append(lost_share(weight_NK, sparse_NK, statistics.importance_K))
        return sparse_NK

    def _count(self, name: str, tensor: torch.Tensor, parameters: set[str]) -> None:
        whole = {own for own, source in self._decoder.names.sources.items() if source.stored == name}
        pattern = self._technique.pattern if whole == parameters else None  # part of a fused tensor was left alone
        self._tensors[name] = SparseTensor(
            pattern=pattern or UNSTRUCTURED, nonzero=int(tensor.count_nonzero()), total=tensor.numel()
        )

    def _describe(self) -> None:
        run, technique = self._run, self._technique
        truth = accelerated_by(technique.pattern or UNSTRUCTURED)
        found = Sparsity(method=technique.method, tensors=self._tensors, accelerated_by=truth)
        found.save(run.out)
        reader = self._decoder.reader
        weights = sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
        of_model = (found.total - found.nonzero) / weights
        run.notice(
            f"{found.share:.2%} of the weights of {len(self._tensors)} tensors are zero ({of_model:.2%} of the model), "
            f"by {technique.method}; accelerated by: {truth}"
        )
        if self._fallbacks:
            name, why = next(iter(self._fallbacks.items()))
            run.notice(f"{len(self._fallbacks)} linear layers were sparsified by magnitude; the first, {name}: {why}")
        run.results["sparsity"] = {
            "share": found.share,
            "share_of_model": of_model,
            "accelerated_by": truth,
            "fallbacks": self._fallbacks,
        }


def _refused(message: str, remedy: str) -> RecipeError:
    return RecipeError(message, remedy=remedy, field="/chain")
