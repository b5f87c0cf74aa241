"""Every stage of a recipe with its cost by formula: the walk of `engine.optimize`, over shapes instead of weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from optcore.estimate import remedies
from optcore.estimate.calibrating import measuring, quantizing, rewriting
from optcore.estimate.changes import Others, after, quantized
from optcore.estimate.drafting import draft_cost, draft_parameters, plan_cost
from optcore.estimate.evaluating import evaluating
from optcore.estimate.facts import ModelFacts
from optcore.estimate.remedies import Remedies
from optcore.estimate.stored import Model
from optcore.estimate.training import (
    Trained,
    features_cost,
    processes_of,
    teacher_cost,
    teacher_of,
    training_cost,
    windows_cost,
)
from optcore.estimate.work import Cost
from optcore.estimate.writing import exporting, fetching
from optcore.evaluate import AnyEvaluator
from optcore.measures import draft_evaluators, gate_evaluator, result_evaluators, step_evaluators
from optcore.plan import (
    Result,
    data_stage,
    evaluate_stage,
    export_stage,
    features_stage,
    gate_stage,
    measured_between,
    measured_drafts,
    plan_stage,
    results,
    rival_stage,
    serve_stage,
    step_stage,
    teacher_stage,
    technique_stage,
)
from optcore.recipe import Recipe
from optcore.references import Calibration
from optcore.techniques import (
    ActivationSparsity,
    AttentionWindow,
    EarlyExit,
    HashShare,
    LowRank,
    Merge,
    Palettize,
    Prune,
    Ptq,
    Puzzle,
    Rotate,
    Sparsify,
    Technique,
    TieLayers,
    Upcycle,
)
from optcore.techniques.distilling import Distilling
from optcore.techniques.draft import Draft
from optcore.techniques.ptq import Quantizing
from optcore.techniques.quantization_aware import QuantizationAware
from optcore.techniques.restructuring import Restructuring
from optcore.techniques.training import Training

_UNMEASURED = (Rotate, Merge, Upcycle, AttentionWindow)
"""Techniques that need no text, as a rule."""
_MEASURED = (Prune, Puzzle, Sparsify, LowRank, Palettize, HashShare, TieLayers, ActivationSparsity, EarlyExit)
"""Those that send text through the model, and change it by what they saw."""


class Priced(NamedTuple):
    """One stage, its cost, and where what causes it stands in the recipe, a JSON Pointer."""

    stage: str
    cost: Cost
    place: str = ""
    remedies: Remedies = tuple
    """What would make it hold less."""


class Made(NamedTuple):
    """One result as it will be."""

    result: Result
    model: Model


@dataclass
class Walk:
    """Where a chain is."""

    recipe: Recipe
    source: ModelFacts
    others: Others = field(default_factory=dict)
    gpus: int = 0
    """Of the machine: training is spread over them."""
    model: Model = field(init=False)
    dense: ModelFacts = field(init=False)
    """In high precision: what a quantized model is taught by."""
    searched: bool = False
    """Whether a plain rounding is measured beside the result."""
    draft: float = 0.0
    """Parameters of what guesses for the model."""
    ptq: tuple[Ptq, ModelFacts] | None = None
    """What gave the model its formats, and what it was given."""
    made: list[Made] = field(default_factory=list)
    shaped: list[tuple[str, Model]] = field(default_factory=list)
    """Which quantized model an entry leaves, by its place in the recipe."""

    def __post_init__(self) -> None:
        self.model, self.dense = Model(self.source), self.source

    def stages(self) -> Iterator[Priced]:
        """In order, under the names of the plan."""
        models = {"/model": self.source, **self.others}
        yield Priced("0-fetch", fetching(self.recipe, models), "/model")
        for number, technique in enumerate(self.recipe.chain, start=1):
            yield from self._entry(number, technique)
        for result in results(self.recipe):
            yield from self._finish(result)

    def _entry(self, number: int, technique: Technique) -> Iterator[Priced]:
        name, place, before = technique_stage(number, technique), f"/chain/{number - 1}", self.model
        yield from self._technique(name, place, technique)
        own = sum(1 for _ in technique.alternatives)
        if technique.gate:
            evaluator = gate_evaluator(self.recipe, technique.gate.metric)
            gate = self._measured(gate_stage(name), f"{place}/gate", "gate", (evaluator,), searched=self.searched)
            yield gate._replace(cost=gate.cost._replace(again=float(own)))
        if number in measured_between(self.recipe):
            yield self._measured(step_stage(name), "/evaluate", "measure", step_evaluators(self.recipe))
        elif number in measured_drafts(self.recipe):
            asked = draft_evaluators(self.recipe, self.source.positions)
            yield self._measured(step_stage(name), "/evaluate", "measure", asked)
        if isinstance(technique, Restructuring) and (rival := technique.rival):
            yield from self._rival(rival_stage(name), place, rival, self.model if rival.rival_goes_on else before)

    def _rival(self, name: str, place: str, rival: Technique, start: Model) -> Iterator[Priced]:
        kept, self.model = self.model, start
        result = after(rival, self.model, self.others, place)
        yield self._calibrated(name, place, rival, result)
        self.model = result
        yield self._measured(step_stage(name), "/evaluate", "measure", step_evaluators(self.recipe))
        self.model = kept

    def _technique(self, name: str, place: str, technique: Technique) -> Iterator[Priced]:
        result = after(technique, self.model, self.others, place)
        again = float(len(technique.alternatives))
        if isinstance(technique, Training):
            yield from self._training(name, place, technique, result)
        else:
            priced = self._calibrated(name, place, technique, result)
            yield priced._replace(cost=priced.cost._replace(again=again))
        if isinstance(technique, Ptq):
            self.ptq = technique, self.model.facts
            self.shaped.append((place, result))
        if isinstance(technique, Quantizing):
            self.searched = technique.is_searched
        self.searched |= isinstance(technique, QuantizationAware)
        self.model = result if not technique.stands_beside else self.model
        if not technique.leaves_weights and not technique.stands_beside:
            self.dense = self.model.facts

    def _training(self, name: str, place: str, technique: Training, result: Model) -> Iterator[Priced]:
        length = min(technique.sequence_length, self.source.positions)
        if isinstance(technique, Draft):
            yield from self._drafting(name, place, technique, length)
            return
        named = self.others.get(f"{place}/teacher")
        asked = named or (self.source if getattr(technique, "teacher", "") == "source" else self.dense)
        if technique.steps:
            yield _prepared(name, place, technique, length, asked)
        if isinstance(technique, Distilling) and technique.teacher_top_k:
            cost = teacher_cost(technique, length, asked)
            yield Priced(teacher_stage(name), cost, f"{place}/teacher", partial(remedies.of_answers, technique))
        teacher = teacher_of(technique, self.source, self.dense, named)
        scope = getattr(technique, "scope", "full")
        kind = f"{getattr(technique, 'technique', 'training')} {scope}"
        trained = Trained(technique, result, teacher, length, processes_of(technique, self.gpus))
        yield Priced(name, training_cost(trained, kind), place, partial(remedies.of_training, trained))

    def _drafting(self, name: str, place: str, technique: Draft, length: int) -> Iterator[Priced]:
        target = self.model.facts
        if technique.steps:
            yield Priced(plan_stage(name), plan_cost(target), place)
            yield _prepared(name, place, technique, length, target)
            if technique.features == "kept":
                yield Priced(features_stage(name), features_cost(technique, length, target), place)
        cost = draft_cost(technique, target, length)
        yield Priced(name, cost, place, partial(remedies.of_draft, technique, target, length))
        self.draft = draft_parameters(technique, target)

    def _finish(self, result: Result) -> Iterator[Priced]:
        model = self.model
        if result.scheme and self.ptq:
            technique, given = self.ptq
            model = Model(given, quantized(technique, result.scheme, given))
        self.made.append(Made(result, model))
        yield Priced(export_stage(self.recipe, result), exporting(model, result.export), "/target")
        wanted = result_evaluators(self.recipe, self.source.positions, result.name)
        several, name = len(results(self.recipe)) > 1, evaluate_stage(self.recipe, result)
        shared = tuple(each for each in wanted if not (several and each.reads_export))
        kept, self.model = self.model, model
        target = result.export.format
        yield self._measured(name, "/evaluate", "evaluate", shared, target=target, searched=self.searched)
        if several:
            own = tuple(each for each in wanted if each.reads_export)
            yield self._measured(serve_stage(self.recipe, result), "/evaluate", "serve", own, target=target)
        self.model = kept

    def _measured(
        self,
        stage: str,
        place: str,
        kind: str,
        evaluators: Sequence[AnyEvaluator],
        *,
        target: str = "dense",
        searched: bool = False,
    ) -> Priced:
        cost = partial(
            evaluating,
            kind,
            source=self.source,
            result=self.model,
            searched=searched,
            target=target,
            draft=self.draft,
        )
        return Priced(stage, cost(evaluators), place, partial(remedies.of_measured, cost, evaluators))

    def _calibrated(self, stage: str, place: str, technique: Technique, result: Model) -> Priced:
        cost = partial(_technique_cost, model=self.model, result=result)
        calibration = self.recipe.calibration
        asked = partial(remedies.of_calibrated, cost, technique, calibration)
        return Priced(stage, cost(technique, calibration), place, asked)


def _prepared(name: str, place: str, technique: Training, length: int, writer: ModelFacts) -> Priced:
    cost = windows_cost(technique, length, writer)
    return Priced(data_stage(name), cost, f"{place}/data", partial(remedies.of_windows, technique, length, writer))


def _technique_cost(technique: Technique, calibration: Calibration, model: Model, result: Model) -> Cost:
    if isinstance(technique, Quantizing):
        return quantizing(technique, model, result, calibration)
    if isinstance(technique, _UNMEASURED) or (isinstance(technique, TieLayers) and technique.runs):
        return rewriting(technique, result.facts)
    if isinstance(technique, _MEASURED):
        return measuring(technique, model.facts, calibration)
    raise TypeError(f"no formula says what {type(technique).__name__} takes")
