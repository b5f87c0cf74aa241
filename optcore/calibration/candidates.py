"""Scores of every number format for every part of a model, in one pass forward and one backward.

While the backward pass has a layer in memory, its inputs are measured, its output gradients come down, and every
candidate format is tried on its weights, with the rounding that the recipe asks for (before channels are smoothed).
Nothing of a layer is kept but its scores, and trying a format costs the same whatever the number of tokens.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.calibration.assignment import Assignment, all_experts, unfit_group
from optcore.calibration.budget import NONE, Allocation, Candidate, Unit, spend
from optcore.calibration.gradients import BackwardPass, OutputGradient
from optcore.calibration.layer import LayerQuantizer
from optcore.calibration.sensitivity import Group, HeldOut, InputSample, input_score, weight_score
from optcore.calibration.statistics import InputStatistics, Observer
from optcore.calibration.text import Texts
from optcore.durable import write_settled
from optcore.errors import BadCheckpoint, RecipeError
from optcore.mixes import fitting
from optcore.schemes import PRESETS, HIGH_PRECISION_bits
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.match import is_matched
from optcore.streaming.simulate import RoundedLinear, module_paths, rounded

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.auto_quantize import AutoQuantize


def choose(run: "Run", technique: "AutoQuantize") -> Allocation:
    """Measure and decide; a process that goes on after another was killed finds the decision in the run's journal."""
    record = run.records / "allocation.json"
    if record.exists():
        return Allocation.model_validate_json(record.read_text())
    allocation = spend(score_units(run, technique), technique.effective_bits)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_settled(record, allocation.model_dump_json())
    return allocation


def score_units(run: "Run", technique: "AutoQuantize") -> list[Unit]:
    """Every unit of the decoder with its candidates' costs and scores, in the order of the model."""
    decoder = Decoder(run.checkpoint)
    ignoring = Assignment(technique.schemes[0], technique.quantizing)
    layers = [module_paths(decoder, index, decoder.layers[index]) for index in range(len(decoder))]
    ignoring.check([], [name for names in layers for name in names.values()])
    windows_ST = Texts(run.source, run.calibration, run.data_files).calibration_windows(decoder.longest_sequence)
    passed = BackwardPass(decoder, windows_ST[: technique.score_samples], run.scratch, run.seed)
    probe, units = probe_state(decoder), []
    for index in reversed(range(len(decoder))):
        with decoder.layer(index) as layer:
            groups = [tuple(group) for group in fused_groups(decoder, index, layer, probe)]
            ignoring.check([[layers[index][path] for path in group] for group in groups], [])
            trial = _Trial(layer, layers[index], groups, technique, decoder.stored_dtype)
            trial.measure(passed, index)
            units.append(trial.units())
        run.progress("searching", len(decoder) - index, len(decoder))
    return [unit for layer_units in reversed(units) for unit in layer_units]


class _Trial:
    """One decoder layer in memory, on which every candidate is tried."""

    def __init__(
        self,
        layer: nn.Module,
        names: Mapping[str, str],
        groups: Sequence[Group],
        technique: "AutoQuantize",
        dtype: torch.dtype,
    ) -> None:
        self._layer = layer
        self._names = names
        self._groups = groups
        self._technique = technique
        self._dtype = dtype
        self._inputs: Mapping[Group, InputStatistics] = {}
        self._judges: Mapping[Group, torch.Tensor | None] = {}
        self._samples: Mapping[Group, torch.Tensor | None] = {}
        self._gradients: Mapping[str, OutputGradient] = {}
        self._tokens = 0

    def measure(self, passed: BackwardPass, index: int) -> None:
        """Go back through the layer, and keep what its inputs and its output gradients are like."""
        observer = Observer(self._layer, self._groups, gram=True)
        sample = InputSample(self._layer, self._groups, passed.tokens)
        held_out = HeldOut(self._layer, self._groups) if self._technique.rounding == "gptq" else None
        with observer.measuring():
            self._gradients = passed.step(index, self._layer)
        self._inputs, self._samples, self._tokens = observer.finished(), sample.finished(), passed.tokens
        self._judges = {group: found.gram_KK for group, found in self._inputs.items()}
        if held_out:
            parted = held_out.parted(self._inputs)
            self._inputs = {group: fitted for group, (fitted, _) in parted.items()}
            self._judges = {group: gram_KK for group, (_, gram_KK) in parted.items()}

    @torch.no_grad()
    def units(self) -> list[Unit]:
        """What must have one format, with the score of every format that it can have."""
        units = list(self._tied().values())
        offers: list[dict[str, Candidate]] = [{} for _ in units]
        for name in self._technique.candidates:
            able = [place for place, groups in enumerate(units) if self._is_open(groups, name)]
            scores = self._scores([group for place in able for group in units[place]], name)
            for place in able:
                paths = [path for group in units[place] for path in group]
                offers[place][name] = Candidate(cost=self._cost(paths, name), score=sum(scores[path] for path in paths))
        return [self._unit(groups, offered) for groups, offered in zip(units, offers, strict=True)]

    def _tied(self) -> dict[Group, list[Group]]:
        """Fused groups by what they share a format with: all experts of a layer, or themselves alone."""
        units: dict[Group, list[Group]] = {}
        for group in self._groups:
            name = self._names[group[0]]
            star = all_experts(name)
            units.setdefault(group if star == name else (star.rpartition(".")[0],), []).append(group)
        return units

    def _is_open(self, groups: Sequence[Group], candidate: str) -> bool:
        """Whether the unit may have the candidate: what the recipe ignores stays in 16 bits, as does nothing else."""
        paths = [path for group in groups for path in group]
        if self._is_ignored(paths) or candidate == NONE:
            return candidate == NONE
        widths = {self._shape(path)[1] for path in paths}
        return all(
            fitting(candidate, width) == candidate and not unfit_group(width, PRESETS[candidate]) for width in widths
        )

    def _is_ignored(self, paths: Sequence[str]) -> bool:
        return any(is_matched(self._names[path], self._technique.ignore) for path in paths)

    def _unit(self, groups: Sequence[Group], offered: dict[str, Candidate]) -> Unit:
        paths = [path for group in groups for path in group]
        if not offered and self._is_ignored(paths):
            offered = {NONE: Candidate(cost=self._cost(paths, NONE), score=0.0)}
        if not offered:
            raise RecipeError(
                f"no candidate fits {self._names[paths[0]]}, which has {self._shape(paths[0])[1]} inputs",
                remedy=f"add `{NONE}` or a format with smaller groups to `candidates`, or the layer to `ignore`",
                field="/chain",
            )
        size = sum(prod(self._shape(path)) * self._times(path) for path in paths)
        return Unit(modules=tuple(self._names[path] for path in paths), size=size, candidates=offered)

    def _cost(self, paths: Sequence[str], candidate: str) -> int:
        return sum(_stored_bits(candidate, self._shape(path)) * self._times(path) for path in paths)

    def _times(self, path: str) -> int:
        """How often a module counts."""
        return self._gradients[path].tokens if self._technique.cost == "active" else 1

    def _scores(self, groups: Sequence[Group], candidate: str) -> dict[str, float]:
        """By path. The rounding is the one that the pass will do, but for smoothing and an asymmetric target."""
        if candidate == NONE:
            return {path: 0.0 for group in groups for path in group}
        settings = self._technique.quantizing
        settings = settings.model_copy(update={"gptq": settings.gptq.model_copy(update={"asymmetry": 0.0})})
        quantizer = LayerQuantizer(self._layer, self._names, settings, self._dtype, Assignment(candidate, settings))
        quantizer.quantize(groups, quantizer.smooth([], self._inputs))
        simulated = quantizer.done.simulated
        return {path: self._score(group, path, simulated[path]) for group in groups for path in group}

    def _score(self, group: Group, path: str, one: RoundedLinear) -> float:
        gradient, gram_KK, sample_TK = self._gradients[path], self._judges[group], self._samples[group]
        plain_N = gradient.mean_square()
        # A rounding that was fitted to the inputs avoids the directions that they have in common.
        squares_N = plain_N if self._technique.rounding == "gptq" else gradient.coherent_square()
        if squares_N is None or plain_N is None or gram_KK is None:
            return 0.0  # no token got here
        share = gradient.tokens / self._tokens
        change_NK = one.weight_NK - self._layer.get_submodule(path).weight.float()
        score = weight_score(squares_N, share, change_NK, gram_KK)
        if one.activations and sample_TK is not None:
            score += input_score(plain_N, share, self._change_by_input(path, one, sample_TK))
        if not isfinite(score):
            raise BadCheckpoint(f"{self._names[path]} is given values that are not finite", field="/model")
        return score

    def _change_by_input(self, path: str, one: RoundedLinear, sample_TK: torch.Tensor) -> torch.Tensor:
        module = self._layer.get_submodule(path)
        given_TK = sample_TK.to(module.weight.dtype)
        with rounded(self._layer, {path: one._replace(activations=None)}, {}):
            exact_TN = module(given_TK)
        with rounded(self._layer, {path: one}, {}):
            return (module(given_TK) - exact_TN).float()

    def _shape(self, path: str) -> tuple[int, int]:
        rows, columns = self._layer.get_submodule(path).weight.shape
        return rows, columns


def _stored_bits(candidate: str, shape_NK: tuple[int, int]) -> int:
    if candidate == NONE:
        return HIGH_PRECISION_bits * prod(shape_NK)
    return round(PRESETS[candidate].bits_per_weight(shape_NK) * prod(shape_NK))
