"""A run from recipe to artifact: fetch, then the chain with its gates, export, evaluate, assemble.

This process is the conductor: it imports no torch, starts each stage in a process of its own (training in several, if
asked) and finds finished stages by key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optcore.architecture import NO_limit
from optcore.artifact import Outcome, assemble
from optcore.attempt import Attempt, attempts_at
from optcore.conductor import Conductor, Emit, Folder
from optcore.draft_fit import check_draft, check_drafts
from optcore.draft_made import Made, baseline, read_made
from optcore.errors import GateFailed, OptError, RecipeError, folder_error
from optcore.estimate.document import Estimate, StageCostSeen
from optcore.events import RecipeResolved, RunEstimated, RunFinished, RunPlanned
from optcore.fetching import commits_of, fetch_work, learns_labels, longest_of, pinned
from optcore.foresight import foresee, foresee_race, refuse_impossible
from optcore.frozen import digest_of
from optcore.held_out import check_held_out
from optcore.lineage import lineage_of
from optcore.manifest import Artifact, TrainedOn
from optcore.measures import (
    check_lengths,
    check_measures,
    draft_evaluators,
    gate_evaluator,
    result_evaluators,
    step_evaluators,
)
from optcore.plan import (
    Result,
    check,
    check_conditions,
    evaluate_stage,
    export_stage,
    gate_stage,
    measured_between,
    measured_drafts,
    results,
    rival_stage,
    screen_stage,
    serve_stage,
    stage_names,
    step_stage,
)
from optcore.preparation import bring_models, prepare
from optcore.quantization import also_folder
from optcore.recipe import Recipe
from optcore.report import Step, Task, Trial
from optcore.search.race import Race
from optcore.stage import (
    EvaluateWork,
    ExportWork,
    FetchWork,
    GateWork,
    Inputs,
    ScreenWork,
    StageRecord,
    StageTask,
    TechniqueWork,
)
from optcore.steps import measured_step
from optcore.targets import check_exports, check_target
from optcore.techniques import AttentionWindow, Gate, Technique
from optcore.techniques.draft import Draft
from optcore.techniques.merge import Merge
from optcore.techniques.restructuring import Restructuring
from optcore.techniques.training import Training
from optcore.training.window_facts import WindowFacts
from optcore.training_fit import check_models
from optcore.trials import said_of, trial
from optcore.work import WorkFolder


def optimize(recipe: Recipe, out: Path, work: Path, emit: Emit, seen: Sequence[StageCostSeen] = ()) -> Artifact:
    """Run a recipe and write its artifact to `out`, which must not exist yet. Raises the errors of `optcore.errors`.

    What it takes is foreseen by the stages that were `seen`, and by those that the work folder knows of.
    """
    if out.exists():
        raise RecipeError(f"the output folder {out} exists already", remedy="name a new folder, or remove this one")
    check(recipe)
    try:
        outcomes = (_run_race if recipe.is_race else _run)(recipe, work, emit, seen)
        artifact = assemble(outcomes, out)
    except OSError as error:
        raise folder_error(error) from error
    emit(RunFinished(digest=artifact.digest))
    return artifact


def fetch(recipe: Recipe, work: Path, emit: Emit) -> Recipe:
    """Only pin and download: the part of a run that needs the network and perhaps a credential."""
    check(recipe)
    try:
        if recipe.is_race:
            return _race(recipe, work, emit).fetch()
        emit(RunPlanned(stages=stage_names(recipe)))
        return _Walk(WorkFolder(work), emit).fetch(recipe)
    except OSError as error:
        raise folder_error(error) from error


def _run(recipe: Recipe, work: Path, emit: Emit, seen: Sequence[StageCostSeen]) -> list[Outcome]:
    """One chain."""
    emit(RunPlanned(stages=stage_names(recipe)))
    walk = _Walk(WorkFolder(work), emit)
    recipe = walk.fetch(recipe)
    if found := walk.foresee(recipe, seen):
        emit(RunEstimated(machine=found.machine, stages=found.stages))
        refuse_impossible(found, walk.work)
    walk.follow(recipe)
    return [walk.finish(result, recipe) for result in results(recipe)]


def _race(recipe: Recipe, work: Path, emit: Emit) -> Race:
    """Several chains, each a walk of its own through the same work folder."""
    return Race(recipe, partial(_Walk, WorkFolder(work), emit), emit)


def _run_race(recipe: Recipe, work: Path, emit: Emit, seen: Sequence[StageCostSeen]) -> list[Outcome]:
    """Several chains, those that this machine has room for."""
    race = _race(recipe, work, emit)
    race.fetch()
    foresee_race(race, WorkFolder(work), seen)
    return race.run()


@dataclass
class _Walk(Conductor):
    """The walk along a chain."""

    dense: Folder = field(default_factory=Folder)
    """The checkpoint whose weights are the model's in high precision: quantizing stages leave them as they are."""
    draft: Folder = field(default_factory=Folder)
    """What guesses for the model; it lies beside the checkpoint, which goes on without it."""
    made: Made | None = None
    """How that did before: in the run that made it, or before this one changed the model."""
    longest: int = NO_limit
    """Tokens that the result holds."""
    trials: list[Trial] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    """The model after each measured entry of the chain."""
    applied: list[Attempt] = field(default_factory=list)
    """Whose results were kept: a fallback instead of what it replaced, training behind what it went on from."""

    def fetch(self, recipe: Recipe) -> Recipe:
        """Bring model and data here; returns the recipe with its commits pinned."""
        resolved = self.bring(recipe)
        self.emit(RecipeResolved(recipe=resolved.model_dump(mode="json")))
        return resolved

    def bring(self, recipe: Recipe) -> Recipe:
        """The same without a word on what the run's recipe is: this walk may be one of several."""
        self.move(calibration=recipe.calibration, seed=recipe.seed)
        record = self.stage("0-fetch", self._fetch_work(recipe))
        results = record.results
        is_encoder = results["task"] != "text-generation"
        task: Task = "text-classification" if is_encoder and learns_labels(recipe) else results["task"]
        self.dense = Folder(results["source"], results["source_digest"])
        self.move(
            source=results["source"],
            source_digest=results["source_digest"],
            checkpoint=results["source"],
            checkpoint_digest=results["source_digest"],
            data_files=tuple(results["data_files"]),
            data_digest=results["data_digest"],
            labelled_digest=results["labelled_digest"],
            task=task,
        )
        check_measures(recipe, task)
        self.longest = longest_of(results)
        if task == "text-generation":
            check_lengths(recipe, self.longest)
        check_held_out(recipe, task, results)
        check_models(recipe, results)
        check_drafts(recipe, Path(results["source"]))
        check_target(recipe, results["family"])
        check_exports(recipe, Path(results["source"]), task)
        if results["conditional"]:
            check_conditions(recipe, next(one for one in recipe.chain if isinstance(one, AttentionWindow)))
        resolved = pinned(recipe, commits_of(results))
        self._remember_pinned(resolved, record)
        return resolved

    def foresee(self, recipe: Recipe, seen: Sequence[StageCostSeen]) -> Estimate | None:
        """What the stages behind the fetch will take; None, and a notice, where that cannot be reckoned."""
        try:
            found = foresee(recipe, self._fetched, self.work.root, seen)
        except Exception as error:  # a formula that fails must not cost a run that would have worked
            self.notice("0-fetch", f"what this run will take could not be reckoned: {error!r}")
            return None
        for problem in found.problems if found and not found.stages else ():
            self.notice("0-fetch", problem.message)
        self.foreseen = found if found and found.stages else None
        return self.foreseen

    def _fetch_work(self, recipe: Recipe) -> FetchWork:
        return fetch_work(recipe, is_one_of_several=bool(self.label))

    def _remember_pinned(self, resolved: Recipe, record: StageRecord) -> None:
        """A later run of the pinned recipe finds this fetch, and needs neither network nor credential."""
        work = self._fetch_work(resolved)
        inputs = Inputs(calibration=resolved.calibration, seed=resolved.seed)
        key = StageTask(name=record.name, work=work, inputs=inputs).key
        if work.is_pinned and key != record.key:
            with self.work.locked(key):
                self.work.commit(self.work.begin(key), record.model_copy(update={"key": key}))

    def follow(self, recipe: Recipe) -> None:
        """The whole chain."""
        for number, technique in enumerate(recipe.chain, start=1):
            self.apply(number, technique, recipe)

    def screen(self, recipe: Recipe, samples: int, sequence_length: int) -> StageRecord:
        """Measure what the chain left, window by window, before anything is written for it."""
        work = ScreenWork(samples=samples, sequence_length=sequence_length)
        with self.aside(), self.unheard():
            return self.stage(screen_stage(recipe), work)

    def apply(self, number: int, technique: Technique, recipe: Recipe) -> None:
        """One entry of the chain, with its gate and fallbacks."""
        start, failed, kept = self.checkpoint, Folder(), list[Attempt]()
        for attempt in attempts_at(number, technique):
            goes_on = bool(failed.path) and "quantized" in attempt.technique.needs
            kept = [*kept, attempt] if goes_on else [attempt]
            self._try(attempt, failed if goes_on else start)
            if self._passes(attempt, recipe):
                self._go_on(attempt)
                self.applied += kept
                self._measure_rival(attempt, start, recipe)
                if number in measured_between(recipe):
                    self.steps.append(self._step(attempt, recipe))
                if number in measured_drafts(recipe):
                    self._measure_draft(attempt, recipe)
                return
            failed = self.left_by(attempt.stage)

    def _go_on(self, attempt: Attempt) -> None:
        left = self.left_by(attempt.stage)
        if attempt.technique.stands_beside:
            self.draft, self.made = left, read_made(Path(left.path))
            return
        self.enter(left)
        if not attempt.technique.leaves_weights:
            self.dense = left
        if self.draft.path:
            self.notice(
                attempt.stage,
                "this entry changes the model behind the draft, which may guess worse for what it is now: let `draft` "
                "be the last entry of the chain, or train it again from there with `start`",
            )

    def _try(self, attempt: Attempt, start: Folder) -> None:
        with self.aside():
            self.enter(start)
            if isinstance(attempt.technique, Draft):
                check_draft(attempt.technique, Path(start.path), attempt.place)
            if isinstance(attempt.technique, Merge | Draft):
                bring_models(self, attempt.place, attempt.technique)
            if isinstance(attempt.technique, Training) and attempt.technique.steps:
                prepare(self, attempt.stage, attempt.place, attempt.technique, self.dense)
            without_gate = attempt.technique.model_copy(update={"gate": None})  # what happens next is not its business
            self.stage(attempt.stage, TechniqueWork.model_validate({"technique": without_gate}))

    def _step(self, attempt: Attempt, recipe: Recipe) -> Step:
        """Measure a checkpoint on the way as the result will be: it is one that engines load already."""
        left = self.left_by(attempt.stage)
        with self.aside():
            self.enter(left)
            self.move(exported=left.path, exported_digest=left.digest, target="dense")
            record = self.stage(step_stage(attempt.stage), EvaluateWork(evaluators=step_evaluators(recipe)))
        folder, rows = Path(left.path), record.results["measurements"]
        return measured_step(attempt.stage, attempt.technique.summary, folder, folder, rows)

    def _measure_draft(self, attempt: Attempt, recipe: Recipe) -> None:
        """Measure the draft before the model changes, as that of the result will be, unless it was in the run that made
        it; a job does not fail because it cannot be measured yet."""
        found, why = None, ""
        try:
            with self.aside(), self.unheard():
                self.move(draft=self.draft.path, draft_digest=self.draft.digest)
                record = self.stage(
                    step_stage(attempt.stage), EvaluateWork(evaluators=draft_evaluators(recipe, self.longest))
                )
            found = record.results.get("made")
        except OptError as error:
            why = f": {error}"
        if found:
            self.made = baseline(self.made, Made.model_validate(found))
        else:
            self.notice(step_stage(attempt.stage), f"the draft was not measured before the model changes{why}")

    def _measure_rival(self, attempt: Attempt, start: Folder, recipe: Recipe) -> None:
        """Make and measure what a restructuring must beat; a job does not fail because its rival cannot be made."""
        rival = attempt.technique.rival if isinstance(attempt.technique, Restructuring) else None
        if rival is None:
            return
        other = attempt._replace(stage=rival_stage(attempt.stage), technique=rival)
        try:
            with self.unheard():
                self._try(other, self.left_by(attempt.stage) if rival.rival_goes_on else start)
                step = self._step(other, recipe)
        except OptError as error:
            self.notice(other.stage, f"the rival of {attempt.stage} was not made: {error}")
        else:
            self.steps.append(step.model_copy(update={"rival": True}))

    def finish(self, result: Result, recipe: Recipe) -> Outcome:
        """Write one result in its target format, and measure it before and after."""
        checkpoint = self.inputs
        if result.scheme:
            self.move(
                checkpoint=str(also_folder(Path(checkpoint.checkpoint), result.scheme)),
                checkpoint_digest=digest_of([checkpoint.checkpoint_digest, result.scheme]),
            )
        record = self.stage(export_stage(recipe, result), ExportWork(export=result.export))
        self.move(exported=str(self.work.files(record.key)), exported_digest=record.key, target=result.export.format)
        self.move(draft=self.draft.path, draft_digest=self.draft.digest, made=self.made)
        evaluated = self._evaluate(result, recipe)
        inputs, self.inputs = self.inputs, checkpoint
        return Outcome(
            result=result,
            recipe=recipe,
            inputs=inputs,
            applied=tuple(attempt.technique for attempt in self.applied),
            evaluated=evaluated,
            costs=tuple(self.costs),
            foreseen=self.foreseen,
            notices=tuple(self.notices),
            trials=tuple(self.trials),
            steps=tuple(self.steps),
            series=tuple(self.series),
            trained_on=tuple(self._trained_on()),
            lineage=lineage_of(recipe, {one.place: one.technique for one in self.applied}, self._fetched),
        )

    def _evaluate(self, result: Result, recipe: Recipe) -> dict[str, Any]:
        """Measure a result before and after; what does not depend on its target once for all that share a checkpoint:
        the stage of the next target is found done."""
        wanted = result_evaluators(recipe, self.longest, result.name)
        if len(results(recipe)) == 1:
            return self.stage(evaluate_stage(recipe, result), EvaluateWork(evaluators=wanted)).results
        shared = tuple(evaluator for evaluator in wanted if not evaluator.reads_export)
        with self.aside():
            self.move(exported="", exported_digest="")
            found = self.stage(evaluate_stage(recipe, result), EvaluateWork(evaluators=shared)).results
        own = tuple(evaluator for evaluator in wanted if evaluator.reads_export)
        served = self.stage(serve_stage(recipe, result), EvaluateWork(evaluators=own)).results
        return {**found, **served, "measurements": [*found["measurements"], *served["measurements"]]}

    @property
    def _fetched(self) -> dict[str, Any]:
        return self.records["0-fetch"].results

    def _trained_on(self) -> Iterator[TrainedOn]:
        for name in (attempt.stage for attempt in self.applied):
            if found := self.records[name].results.get("training"):
                data = WindowFacts.model_validate(found["data"])
                yield TrainedOn(
                    stage=name, **data.model_dump(include={"kind", "sha256", "windows", "seed"}), tokens=data.tokens
                )

    def _passes(self, attempt: Attempt, recipe: Recipe) -> bool:
        """Whether an attempt's result meets its gate; raises `GateFailed` when it must and does not."""
        gate = attempt.technique.gate
        if gate is None:
            return True
        value = self._gate_value(attempt.stage, gate, recipe)
        made = trial(attempt.stage, attempt.technique, gate, value, attempt.following)
        self.trials.append(made)
        if made.passed:
            return True
        if gate.on_fail == "stop":
            missed = "; ".join(said_of(one) for one in self.trials if not one.passed)
            raise GateFailed(missed, remedy="choose a higher-precision scheme, or a wider gate", field="/chain")
        self.notice(attempt.stage, said_of(made))
        return gate.on_fail == "warn"

    def _gate_value(self, name: str, gate: Gate, recipe: Recipe) -> float:
        evaluator = gate_evaluator(recipe, gate.metric, self.inputs.task)
        with self.aside():
            self.enter(self.left_by(name))
            record = self.stage(gate_stage(name), GateWork(evaluator=evaluator))
        value: float = record.results[gate.metric]
        return value
