"""Thresholds for the inputs of linear layers, calibrated in one pass over the decoder (TEAL, arXiv:2408.14690).

Each layer is measured on what the thresholded layers before it give. Linears with a common input share its threshold,
and a layer's experts share a level, each with the threshold that its own tokens give it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from optcore.algorithms.magnitudes import Magnitudes
from optcore.calibration.propagate import calibration_windows
from optcore.conditional import Conditional, SparseInput, SparseInputs, load_conditional
from optcore.errors import RecipeError
from optcore.links import link_checkpoint, link_forms
from optcore.streaming.conditions import thresholded
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.match import is_matched, time_limit, unmatched
from optcore.streaming.simulate import module_paths

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.activation_sparsity import ActivationSparsity

ACCELERATED_BY = (
    "nothing: no serving engine reads conditional.json; TEAL's own kernels skip such inputs at batch size 1, once they "
    "are given these thresholds"
)
_MOST = 0.95
"""The highest share that the search gives one input."""
_SEARCHED_tokens = 1024
Inputs = dict[str, SparseInput]
"""By path in the layer."""


class Seen:
    """What calibration text shows of the input of some linears: magnitudes of all values, energy of each channel."""

    def __init__(self, channels: int) -> None:
        self.magnitudes = Magnitudes()
        self.energy_K = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Count an input [.., K]."""
        self.magnitudes.add(x)
        self.energy_K += x.detach().reshape(-1, x.shape[-1]).double().square().sum(0).cpu()

    def sparse(self, level: float, method: str) -> SparseInput:
        """The input with a share of it zero; an input that no token reached stays whole."""
        if not self.magnitudes.count:
            return SparseInput(ratio=0.0, reached=0.0)
        if method == "static":
            count = round(level * len(self.energy_K))
            dropped = self.energy_K.argsort(stable=True)[:count].sort().values.tolist()
            return SparseInput(ratio=level, reached=0.0, dropped=tuple(dropped))
        return SparseInput(ratio=level, reached=0.0, threshold=self.magnitudes.quantile(level))


class Candidate(NamedTuple):
    """Inputs that get one level: one, or that of every expert in a layer."""

    groups: tuple[tuple[str, ...], ...]
    """Paths of the linears that read each of them."""
    weights: int
    """Multiplied with them."""


def greedy_levels(
    error: Callable[[Sequence[float]], float], weights: Sequence[int], ratio: float, step: float
) -> list[float]:
    """Levels whose mean over the weights is `ratio` (TEAL, algorithm 1): raise by `step` what costs least each time.

    `error` is the squared error of the layer's output at given levels. TEAL takes steps of equal cost; ours are of
    equal share, and the error is taken per weight that is saved.
    """
    levels, now = [0.0] * len(weights), 0.0
    total = sum(weights)
    while (left := ratio * total - sum(level * w for level, w in zip(levels, weights, strict=True))) > 1e-9 * total:
        tried: list[tuple[float, float, list[float]]] = []
        for place, (level, weight) in enumerate(zip(levels, weights, strict=True)):
            raised = min(level + step, _MOST, level + left / weight)
            if raised > level:
                trial = [*levels[:place], raised, *levels[place + 1 :]]
                found = error(trial)
                tried.append(((found - now) / ((raised - level) * weight), found, trial))
        _, now, levels = min(tried, key=lambda one: one[0])
    return levels


@torch.no_grad()
def sparsify_activations(run: "Run", technique: "ActivationSparsity") -> None:
    """Link `run.checkpoint` to `run.out`, with a `conditional.json` that holds the thresholds.

    Raises `RecipeError`, before any text is read, for an `ignore` that matches nothing or leaves no layer.
    """
    _Pass(run, technique).walk()


class _Pass:
    """Walks through the layers once."""

    def __init__(self, run: "Run", technique: "ActivationSparsity") -> None:
        self._run = run
        self._technique = technique
        self._decoder = Decoder(run.checkpoint)
        self._chosen = self._check()

    def walk(self) -> None:
        """Calibrate layer by layer, then describe the result."""
        decoder, run = self._decoder, self._run
        states = HiddenStates(decoder, calibration_windows(run, decoder), run.scratch)
        probe, found, saved = probe_state(decoder), Inputs(), list[float]()
        for index in range(len(decoder)):
            with decoder.layer(index) as layer:
                candidates = self._candidates(index, layer, fused_groups(decoder, index, layer, probe))
                own = self._reached(index, layer, states, self._calibrated(index, layer, states, candidates))
                saved.append(_saved(own, layer))
                names = module_paths(decoder, index, layer)
                found |= {names[path]: one for path, one in own.items()}
            run.progress("calibrating", index + 1, len(decoder))
        self._write(found, saved)

    def _check(self) -> set[str]:
        """Names of the linears whose inputs will be sparse."""
        decoder, ignore = self._decoder, self._technique.ignore
        layers = enumerate(decoder.layers)
        names = [name for index, layer in layers for name in module_paths(decoder, index, layer).values()]
        with time_limit():
            if lost := unmatched(ignore, names):
                raise _refused(
                    f"{lost[0]!r} matches no linear layer of the decoder", "write names as in the checkpoint"
                )
            chosen = {name for name in names if not is_matched(name, ignore)}
        if not chosen:
            raise _refused("no linear layer is left whose inputs could be sparse", "let `ignore` leave at least one")
        return chosen

    def _candidates(self, index: int, layer: nn.Module, groups: Sequence[Sequence[str]]) -> list[Candidate]:
        names, alike = module_paths(self._decoder, index, layer), dict[str, list[tuple[str, ...]]]()
        for group in groups:
            if chosen := tuple(path for path in group if names[path] in self._chosen):
                alike.setdefault(re.sub(r"\.\d+\.", ".*.", chosen[0]), []).append(chosen)
        return [
            Candidate(tuple(each), sum(_weight(layer, path).numel() for group in each for path in group))
            for each in alike.values()
        ]

    def _calibrated(
        self, index: int, layer: nn.Module, states: HiddenStates, candidates: Sequence[Candidate]
    ) -> Inputs:
        technique = self._technique
        seen = self._seen(index, layer, states, candidates)

        def inputs(levels: Sequence[float]) -> Inputs:
            return {
                path: seen[group].sparse(level, technique.method)
                for candidate, level in zip(candidates, levels, strict=True)
                for group in candidate.groups
                for path in group
            }

        if technique.allocation == "uniform":
            return inputs([technique.ratio] * len(candidates))
        windows = max(1, min(len(states.hidden_STH), _SEARCHED_tokens // states.hidden_STH.shape[1]))
        state = states.chosen(range(windows))
        exact_BTH = self._decoder.forward(index, layer, state).hidden_BTH

        def error(levels: Sequence[float]) -> float:
            with thresholded(layer, inputs(levels)):
                out_BTH = self._decoder.forward(index, layer, state).hidden_BTH
            return float((out_BTH - exact_BTH).float().square().sum())

        weights = [candidate.weights for candidate in candidates]
        return inputs(greedy_levels(error, weights, technique.ratio, technique.step))

    def _seen(
        self, index: int, layer: nn.Module, states: HiddenStates, candidates: Sequence[Candidate]
    ) -> Mapping[tuple[str, ...], Seen]:
        groups = [group for candidate in candidates for group in candidate.groups]
        seen = {group: Seen(_weight(layer, group[0]).shape[1]) for group in groups}
        handles = [
            layer.get_submodule(group[0]).register_forward_pre_hook(lambda _, given, own=own: own.add(given[0]))
            for group, own in seen.items()
        ]
        for _, state in states.states():
            self._decoder.forward(index, layer, state)
        for handle in handles:
            handle.remove()
        return seen

    def _reached(self, index: int, layer: nn.Module, states: HiddenStates, inputs: Inputs) -> Inputs:
        """Take all states past the thresholded layer, and count what was zero on the way."""
        zeros, seen = dict.fromkeys(inputs, 0), dict.fromkeys(inputs, 0)

        def count(path: str, x: torch.Tensor) -> None:
            zeros[path] += x.numel() - int(x.count_nonzero())
            seen[path] += x.numel()

        with thresholded(layer, inputs):
            handles = [
                layer.get_submodule(path).register_forward_pre_hook(lambda _, given, path=path: count(path, given[0]))
                for path in inputs
            ]
            states.advance(index, layer)
        for handle in handles:
            handle.remove()
        shares = {path: zeros[path] / max(1, seen[path]) for path in inputs}
        return {path: one.model_copy(update={"reached": shares[path]}) for path, one in inputs.items()}

    def _write(self, found: Inputs, saved: Sequence[float]) -> None:
        run, technique = self._run, self._technique
        link_checkpoint(run.checkpoint, run.out)
        link_forms(run.checkpoint, run.out)
        inputs = SparseInputs(
            method=technique.method, allocation=technique.allocation, ratio=technique.ratio, tensors=found
        )
        before = load_conditional(run.checkpoint) or Conditional()
        before.model_copy(update={"inputs": inputs, "accelerated_by": ACCELERATED_BY}).save(run.out)
        reached = sum(saved) / len(saved)
        run.results["activation_sparsity"] = {
            "reached": reached,
            "layers": list(saved),
            "accelerated_by": ACCELERATED_BY,
        }
        run.notice(
            f"{reached:.2%} of the inputs of {len(found)} linear layers are zero on the calibration text, in the mean "
            f"over their weights; accelerated by: {ACCELERATED_BY}"
        )


def _saved(inputs: Inputs, layer: nn.Module) -> float:
    """Share of a layer's weights whose inputs are zero, in the mean over tokens; of linears that were chosen."""
    sizes = {path: _weight(layer, path).numel() for path in inputs}
    return sum(one.reached * sizes[path] for path, one in inputs.items()) / max(1, sum(sizes.values()))


def _weight(layer: nn.Module, path: str) -> torch.Tensor:
    return layer.get_parameter(f"{path}.weight")


def _refused(message: str, remedy: str) -> RecipeError:
    return RecipeError(message, remedy=remedy, field="/chain")
