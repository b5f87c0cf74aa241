"""A run from recipe to artifact: fetch, then the chain with its gates, export, evaluate, assemble.

This process is the conductor: it imports no torch, starts one process per stage and finds finished stages by key.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from optcore.artifact import Artifact, Outcome, assemble
from optcore.child import RESULTS, run_stage
from optcore.errors import GateFailed, RecipeError, folder_error
from optcore.evaluate import Fidelity
from optcore.events import AnyEvent, Notice, RecipeResolved, RunFinished, RunPlanned, StageFinished, StageStarted
from optcore.frozen import Frozen, digest_of
from optcore.plan import (
    Result,
    check,
    data_stage,
    evaluate_stage,
    export_stage,
    gate_stage,
    results,
    stage_names,
    teacher_stage,
    technique_stage,
)
from optcore.quantization import also_folder
from optcore.recipe import Recipe
from optcore.report import StageCost
from optcore.stage import (
    AnyWork,
    DataWork,
    EvaluateWork,
    ExportWork,
    FetchWork,
    GateWork,
    Inputs,
    StageRecord,
    StageTask,
    TeacherWork,
    TechniqueWork,
)
from optcore.targets import check_target
from optcore.techniques import AnyTechnique, Technique
from optcore.techniques.distilling import Distilling
from optcore.techniques.losses import top_k_temperature
from optcore.techniques.training import Training
from optcore.work import WorkFolder

Emit = Callable[[AnyEvent], None]


def optimize(recipe: Recipe, out: Path, work: Path, emit: Emit) -> Artifact:
    """Run a recipe and write its artifact to `out`, which must not exist yet. Raises the errors of `optcore.errors`."""
    if out.exists():
        raise RecipeError(f"the output folder {out} exists already", remedy="name a new folder, or remove this one")
    check(recipe)
    emit(RunPlanned(stages=stage_names(recipe)))
    try:
        walk = _Walk(WorkFolder(work), emit)
        recipe = walk.fetch(recipe)
        for number, technique in enumerate(recipe.chain, start=1):
            walk.apply(number, technique, recipe)
        artifact = assemble([walk.finish(result, recipe) for result in results(recipe)], out)
    except OSError as error:
        raise folder_error(error) from error
    emit(RunFinished(digest=artifact.digest))
    return artifact


def fetch(recipe: Recipe, work: Path, emit: Emit) -> Recipe:
    """Only pin and download: the part of a run that needs the network and perhaps a credential."""
    check(recipe)
    emit(RunPlanned(stages=stage_names(recipe)))
    try:
        return _Walk(WorkFolder(work), emit).fetch(recipe)
    except OSError as error:
        raise folder_error(error) from error


class _Folder(NamedTuple):
    """A checkpoint, and the digest of what it holds."""

    path: str
    digest: str


@dataclass
class _Walk:
    """Where a run is: the inputs of the next stage, and what the stages so far left."""

    work: WorkFolder
    emit: Emit
    inputs: Inputs = field(default_factory=Inputs)
    records: dict[str, StageRecord] = field(default_factory=dict)
    costs: list[StageCost] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    dense: "_Folder" = field(default_factory=lambda: _Folder("", ""))
    """The checkpoint whose weights are the model's in high precision: quantizing stages leave them as they are."""
    applied: list[Technique] = field(default_factory=list)
    """The techniques whose results were kept: a fallback instead of what it replaced."""

    def fetch(self, recipe: Recipe) -> Recipe:
        """Bring model and data here; returns the recipe with its commits pinned."""
        self._move(calibration=recipe.calibration, seed=recipe.seed)
        record = self._stage("0-fetch", fetch_work(recipe))
        results = record.results
        self.dense = _Folder(results["source"], results["source_digest"])
        self._move(
            source=results["source"],
            source_digest=results["source_digest"],
            checkpoint=results["source"],
            checkpoint_digest=results["source_digest"],
            data_files=tuple(results["data_files"]),
            data_digest=results["data_digest"],
        )
        check_target(recipe, results["family"])
        pinned = _pinned(recipe, results)
        self._remember_pinned(pinned, record)
        self.emit(RecipeResolved(recipe=pinned.model_dump(mode="json")))
        return pinned

    def _remember_pinned(self, pinned: Recipe, record: StageRecord) -> None:
        """A later run of the pinned recipe finds this fetch, and needs neither network nor credential."""
        work = fetch_work(pinned)
        inputs = Inputs(calibration=pinned.calibration, seed=pinned.seed)
        key = StageTask(name=record.name, work=work, inputs=inputs).key
        if work.is_pinned and key != record.key:
            with self.work.locked(key):
                self.work.commit(self.work.begin(key), record.model_copy(update={"key": key}))

    def apply(self, number: int, technique: Technique, recipe: Recipe) -> None:
        """One entry of the chain, with its gate and fallbacks."""
        for attempt, candidate in enumerate((technique, *technique.alternatives)):
            name = technique_stage(number, candidate, attempt)
            with self._prepared(name, number, candidate):
                self._stage(name, TechniqueWork(technique=candidate))
            if self._passes(name, candidate, recipe):
                self._enter_checkpoint(name)
                if not candidate.leaves_weights:
                    self.dense = _Folder(self.inputs.checkpoint, self.inputs.checkpoint_digest)
                self.applied.append(candidate)
                return

    @contextmanager
    def _prepared(self, name: str, number: int, technique: Technique) -> Iterator[None]:
        """What a training technique reads besides a checkpoint, made and at hand; as it was before, afterwards."""
        before = self.inputs
        if isinstance(technique, Training):
            self._bring(number, technique)
            self._prepare_windows(name, technique)
            if isinstance(technique, Distilling) and technique.teacher_top_k:
                self._ask_teacher(name, technique, technique.teacher_top_k)
        try:
            yield
        finally:
            self.inputs = before

    def _bring(self, number: int, technique: Training) -> None:
        """The teacher, the student and the text that were fetched for it."""
        fetched, place = self.records["0-fetch"].results, f"/chain/{number - 1}"
        if text := fetched["texts"].get(f"{place}/data"):
            self._move(text_files=tuple(text["files"]), text_digest=text["digest"])
        elif technique.data.is_text:
            self._move(text_files=self.inputs.data_files)
        if student := fetched["models"].get(f"{place}/student"):
            self._move(checkpoint=student["path"], checkpoint_digest=student["digest"])
        if isinstance(technique, Distilling):
            teacher = self._teacher(technique, fetched["models"].get(f"{place}/teacher"))
            self._move(teacher=teacher.path, teacher_digest=teacher.digest)

    def _teacher(self, technique: Distilling, named: dict[str, str] | None) -> "_Folder":
        if named:
            return _Folder(named["path"], named["digest"])
        if technique.teacher == "source":
            return _Folder(self.inputs.source, self.inputs.source_digest)
        return self.dense

    def _prepare_windows(self, name: str, technique: Training) -> None:
        """Windows depend on the tokenizer, and on a teacher only where it writes them: chains share them."""
        work = DataWork(
            data=technique.prepared_data,
            sequence_length=technique.sequence_length,
            training=technique.windows,
            validation=technique.validation.samples,
        )
        writer = self.dense if technique.data.kind == "generated" else _Folder("", "")
        if technique.data.kind == "generated" and self.inputs.teacher:
            writer = _Folder(self.inputs.teacher, self.inputs.teacher_digest)
        with self._reading(teacher=writer.path, teacher_digest=writer.digest):
            record = self._stage(data_stage(name), work)
        self._move(windows=str(self.work.files(record.key)), windows_digest=record.key)

    def _ask_teacher(self, name: str, technique: Distilling, top_k: int) -> None:
        """Answers depend on the teacher and the windows alone."""
        work = TeacherWork(top_k=top_k, temperature=top_k_temperature(technique.losses))
        with self._reading(teacher=self.inputs.teacher, teacher_digest=self.inputs.teacher_digest):
            record = self._stage(teacher_stage(name), work)
        self._move(answers=str(self.work.files(record.key)), answers_digest=record.key, teacher="", teacher_digest="")

    @contextmanager
    def _reading(self, **changed: object) -> Iterator[None]:
        """Stages that do not depend on the student read the source in its place."""
        before = self.inputs
        self._move(checkpoint=before.source, checkpoint_digest=before.source_digest, **changed)
        try:
            yield
        finally:
            self.inputs = before

    def finish(self, result: Result, recipe: Recipe) -> Outcome:
        """Write one result in its target format, and measure it before and after."""
        checkpoint = self.inputs
        if result.scheme:
            self._move(
                checkpoint=str(also_folder(Path(checkpoint.checkpoint), result.scheme)),
                checkpoint_digest=digest_of([checkpoint.checkpoint_digest, result.scheme]),
            )
        record = self._stage(export_stage(recipe, result), ExportWork(export=result.export))
        self._move(exported=str(self.work.files(record.key)), exported_digest=record.key, target=result.export.format)
        evaluated = self._stage(evaluate_stage(recipe, result), EvaluateWork(evaluators=recipe.evaluate))
        inputs, self.inputs = self.inputs, checkpoint
        return Outcome(
            result, recipe, inputs, tuple(self.applied), evaluated.results, tuple(self.costs), tuple(self.notices)
        )

    def _passes(self, name: str, technique: Technique, recipe: Recipe) -> bool:
        """Whether the technique's result meets its gate; raises `GateFailed` when it must and does not."""
        gate = technique.gate
        if gate is None:
            return True
        before = self.inputs
        self._enter_checkpoint(name)
        try:
            record = self._stage(gate_stage(name), _gate_work(recipe))
        finally:
            self.inputs = before
        value = record.results[gate.metric]
        if value <= gate.max:
            return True
        said = f"{name}: {gate.metric} is {value:.4g}, the gate allows {gate.max:g}"
        if gate.on_fail == "stop":
            raise GateFailed(said, remedy="choose a higher-precision scheme, or a wider gate", field="/chain")
        self._notice(name, said)
        return gate.on_fail == "warn"

    def _stage(self, name: str, work: AnyWork) -> StageRecord:
        """Find the stage done, or run it in its own process."""
        task = StageTask(name=name, work=work, inputs=self.inputs)
        key = task.key
        self.emit(StageStarted(stage=name, key=key))
        started = time.monotonic()
        with self.work.locked(key):
            record = self._finished(task, key)
            cached = record is not None
            record = record or self._run(task, key)
        self.records[name] = record
        self._account(name, record, cached, time.monotonic() - started)
        return record

    def _finished(self, task: StageTask, key: str) -> StageRecord | None:
        """A stage that need not run: a fetch only while its commits are pinned and its files still there."""
        if not isinstance(task.work, FetchWork):
            return self.work.record(key)
        record = self.work.record(key) if task.work.is_pinned else None
        return record if record and Path(record.results["source"]).exists() else None

    def _run(self, task: StageTask, key: str) -> StageRecord:
        part = self.work.begin(key)
        paths = {name: str(part / name) for name in ("scratch", "journal")}
        paths |= {"out": str(part / "files"), "cache": str(self.work.sources)}
        started = time.monotonic()
        usage = run_stage(task.model_copy(update=paths), part / "task.json", self.emit)
        record = StageRecord(
            name=task.name,
            key=key,
            seconds=time.monotonic() - started,
            peak_memory_bytes=usage.peak_memory_bytes,
            results=json.loads((part / RESULTS).read_text()),
        )
        self.work.commit(part, record)
        return record

    def _account(self, name: str, record: StageRecord, cached: bool, waited_seconds: float) -> None:
        self.notices += record.results.get("notices", [])
        self.costs.append(
            StageCost(name=name, seconds=record.seconds, peak_memory_bytes=record.peak_memory_bytes, cached=cached)
        )
        self.emit(
            StageFinished(
                stage=name,
                key=record.key,
                cached=cached,
                seconds=waited_seconds,
                peak_memory_bytes=record.peak_memory_bytes,
            )
        )

    def _enter_checkpoint(self, name: str) -> None:
        key = self.records[name].key
        self._move(checkpoint=str(self.work.files(key)), checkpoint_digest=key)

    def _move(self, **changed: object) -> None:
        self.inputs = self.inputs.model_copy(update=changed)

    def _notice(self, stage: str, message: str) -> None:
        self.notices.append(message)
        self.emit(Notice(stage=stage, message=message))


def fetch_work(recipe: Recipe) -> FetchWork:
    """What a recipe needs from outside, and what there must be enough of."""
    lengths = tuple(e.sequence_length for e in recipe.evaluate if isinstance(e, Fidelity))
    chain = list(enumerate(recipe.chain))
    return FetchWork(
        model=recipe.model,
        calibration=recipe.calibration,
        evaluations=lengths,
        models={f"/chain/{n}/{name}": ref for n, one in chain for name, ref in one.models.items()},
        texts={f"/chain/{n}/{name}": needed for n, one in chain for name, needed in one.texts.items()},
    )


def _pinned(recipe: Recipe, fetched: dict[str, Any]) -> Recipe:
    """The recipe with the commits that were fetched."""
    beside = {**fetched["models"], **fetched["texts"]}
    chain = tuple(_pinned_technique(f"/chain/{n}/", technique, beside) for n, technique in enumerate(recipe.chain))
    model = _at(recipe.model, fetched["model_revision"])
    calibration = _at(recipe.calibration, fetched["data_revision"])
    return recipe.model_copy(update={"model": model, "calibration": calibration, "chain": chain})


def _pinned_technique(place: str, technique: AnyTechnique, fetched: dict[str, Any]) -> AnyTechnique:
    named = {key.removeprefix(place): found["revision"] for key, found in fetched.items() if key.startswith(place)}
    return technique.model_copy(update={name: _at(getattr(technique, name), commit) for name, commit in named.items()})


def _at(reference: Frozen, commit: str | None) -> Frozen:
    return reference.model_copy(update={"revision": commit} if commit else {})


def _gate_work(recipe: Recipe) -> GateWork:
    """A gate measures on the windows that the final evaluation uses."""
    chosen = next((evaluator for evaluator in recipe.evaluate if isinstance(evaluator, Fidelity)), Fidelity())
    return GateWork(samples=chosen.samples, sequence_length=chosen.sequence_length)
