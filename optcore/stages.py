"""Inside a stage process: the task's work, done."""

import gc
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from optcore.evaluate import AnyEvaluator, Throughput
from optcore.events import AnyEvent
from optcore.frozen import digest_of
from optcore.references import ModelRef, NeededText
from optcore.report import Measurement, Task
from optcore.run import Run
from optcore.stage import (
    DataWork,
    DraftPlanWork,
    EvaluateWork,
    ExportWork,
    FeaturesWork,
    FetchWork,
    GateWork,
    Grouping,
    ScreenWork,
    StageTask,
    TeacherWork,
    TechniqueWork,
    Windowing,
)
from optcore.targets import family_of
from optcore.techniques.draft import Draft


def import_libraries(task: StageTask) -> None:
    """Import what the work needs before it begins, without looking for garbage among what an import makes.

    The collector would go through a million new objects again and again, find nothing, and do so once more at exit: a
    third of the processor time of a short stage. What the libraries made is left out of its later searches too.
    """
    gc.disable()
    try:
        for module in _rooms(task):
            import_module(module)
        gc.freeze()
    finally:
        gc.enable()


def _rooms(task: StageTask) -> tuple[str, ...]:
    """The modules behind which the work's heavy libraries are."""
    match task.work:
        case FetchWork():
            return ("optcore.calibration.text",)
        case ExportWork():
            return ("torch",)
        case EvaluateWork(evaluators=evaluators) if all(isinstance(each, Throughput) for each in evaluators):
            return ()  # a throughput is measured by processes of its own
    return ("optcore.calibration.text", "optcore.streaming.decoder")


def perform(task: StageTask, emit: Callable[[AnyEvent], None]) -> dict[str, Any]:
    """Do the work of one task; what it returns goes into the stage's record."""
    run = _context(task, emit)
    match task.work:
        case FetchWork():
            _fetch(run, task.work, Path(task.cache))
        case DraftPlanWork(technique=draft):
            _plan(run, draft)
        case DataWork():
            _prepare(run, task.work)
        case TeacherWork():
            _ask(run, task.work)
        case FeaturesWork():
            _keep_features(run, task.work)
        case TechniqueWork(technique=technique):
            technique.apply(run)
        case GateWork() | ScreenWork():
            _look(run, task.work)
        case ExportWork(export=export):
            export.write(run)
        case EvaluateWork():
            _evaluate(run, task.work)
    return run.results


def _context(task: StageTask, emit: Callable[[AnyEvent], None]) -> Run:
    return Run(
        stage=task.name,
        checkpoint=Path(task.inputs.checkpoint),
        source=Path(task.inputs.source),
        out=Path(task.out),
        scratch=Path(task.scratch),
        journal=Path(task.journal),
        calibration=task.inputs.calibration,
        data_files=tuple(Path(file) for file in task.inputs.data_files),
        emit=emit,
        seed=task.inputs.seed,
        text_files=tuple(Path(file) for file in task.inputs.text_files),
        teacher=Path(task.inputs.teacher) if task.inputs.teacher else None,
        windows=Path(task.inputs.windows),
        models=tuple(Path(model) for model in task.inputs.models),
        answers=Path(task.inputs.answers) if task.inputs.answers else None,
        features=Path(task.inputs.features) if task.inputs.features else None,
        draft=Path(task.inputs.draft) if task.inputs.draft else None,
        made=task.inputs.made,
        export=Path(task.inputs.exported),
        target=task.inputs.target,
        task=task.inputs.task,
    )


def _fetch(run: Run, work: FetchWork, cache: Path) -> None:
    from optcore.architecture import check_architecture, longest_sequence, task_of
    from optcore.calibration.text import Texts
    from optcore.evaluate.examples import labels_of
    from optcore.restructure.alike import check_alike
    from optcore.sources.datasets import fetch_data
    from optcore.sources.models import fetch_model
    from optcore.streaming.reader import TensorReader

    model = fetch_model(work.model, cache, run.progress)
    check_architecture(model.path)
    data = fetch_data(work.calibration.needed, cache, run.progress)
    task = task_of(model.path)
    windows = () if task == "text-classification" else work.evaluations
    longest = longest_sequence(model.path)
    Texts(model.path, work.calibration, tuple(data.files)).check(longest, windows)
    config, tensors = json.loads((model.path / "config.json").read_text()), TensorReader(model.path)
    if work.grouping:
        _check_grouping(run, model.path, work.grouping)
    models = {place: _fetch_beside(run, model.path, place, ref, cache) for place, ref in work.models.items()}
    drafts = {place: _fetch_draft(run, model.path, place, ref, cache) for place, ref in work.drafts.items()}
    for place in work.alike:
        check_alike(model.path, Path(models[place]["path"]), place)
    last = [model.path, *(Path(found["path"]) for place, found in models.items() if place.endswith("/student"))][-1]
    run.results.update(
        source=str(model.path),
        family=family_of(config, map(tensors.shape, tensors.names)),
        source_digest=model.digest,
        longest_sequence=longest,
        task=task,
        conditional=work.windowing is not None and _needs_conditions(run, model.path, work.windowing, task),
        labels=list(labels_of(model.path).values()),
        labelled_digest="" if task == "text-generation" else _fetch_labelled(run, work, last, data.files),
        model_revision=model.revision,
        data_files=[str(file) for file in data.files],
        data_digest=data.digest,
        data_revision=data.revision,
        models=models,
        drafts=drafts,
        texts={place: _fetch_text(run, place, needed, cache) for place, needed in work.texts.items()},
    )


def _check_grouping(run: Run, model: Path, grouping: Grouping) -> None:
    from optcore.restructure.grouping import check_grouping

    check_grouping(model, grouping, run.scratch)


def _needs_conditions(run: Run, model: Path, windowing: Windowing, task: Task) -> bool:
    from optcore.restructure.attention_window import needs_conditions

    return needs_conditions(model, windowing, task, run.scratch)


def _fetch_beside(run: Run, model: Path, place: str, ref: ModelRef, cache: Path) -> dict[str, Any]:
    """A teacher, a student or a model to merge: it must speak the model's language."""
    from optcore.architecture import check_architecture, longest_sequence, task_of
    from optcore.evaluate.examples import labels_of
    from optcore.sources.models import fetch_model
    from optcore.sources.vocabulary import check_same_vocabulary

    found = fetch_model(ref, cache, run.progress, place)
    check_architecture(found.path)
    check_same_vocabulary(model, found.path, place)
    return {
        "path": str(found.path),
        "digest": found.digest,
        "revision": found.revision,
        "longest_sequence": longest_sequence(found.path),
        "task": task_of(found.path),
        "labels": list(labels_of(found.path).values()),
    }


def _fetch_draft(run: Run, model: Path, place: str, ref: ModelRef, cache: Path) -> dict[str, Any]:
    """A draft to begin with: no language model of its own, but it must speak of the model's tokens."""
    from optcore.sources.drafts import check_draft_fits, fetch_draft

    found = fetch_draft(ref, cache, run.progress, place)
    check_draft_fits(model, found.path, place)
    return {"path": str(found.path), "digest": found.digest, "revision": found.revision}


def _fetch_text(run: Run, place: str, needed: NeededText, cache: Path) -> dict[str, Any]:
    from optcore.sources.datasets import fetch_data

    found = fetch_data(needed, cache, run.progress, place)
    return {"files": [str(file) for file in found.files], "digest": found.digest, "revision": found.revision}


def _fetch_labelled(run: Run, work: FetchWork, model: Path, files: tuple[Path, ...]) -> str:
    """Digest of the evaluators' own files, after a look into them; `model` is the one whose labels are measured."""
    from optcore.evaluate.examples import check_examples
    from optcore.sources.datasets import fetch_file

    own = [evaluator.path for evaluator in work.classifications if evaluator.path]
    digests = [fetch_file(Path(path), "/evaluate", run.progress).digest for path in own]
    for evaluator in work.classifications:
        check_examples(model, evaluator, work.calibration, files)
    return digest_of(digests) if digests else ""


def _plan(run: Run, technique: Draft) -> None:
    from optcore.training.draft_refusals import check_draft_plan

    check_draft_plan(run, technique)


def _prepare(run: Run, work: DataWork) -> None:
    from optcore.training.prepare import prepare_windows

    run.results["windows"] = prepare_windows(run, work).model_dump(mode="json")


def _ask(run: Run, work: TeacherWork) -> None:
    from optcore.training.answers import keep_answers

    keep_answers(run, work.top_k, work.temperature)


def _keep_features(run: Run, work: FeaturesWork) -> None:
    from optcore.drafts.taps import taps_of
    from optcore.speculative.outline import TargetOutline
    from optcore.training.kept_features import keep_features

    taps = taps_of(work.technique, TargetOutline(run.checkpoint).layers)
    keep_features(run, taps, work.technique.feature_dtype)


def _look(run: Run, work: GateWork | ScreenWork) -> None:
    """Measure a checkpoint on the way, to see what to do next."""
    if isinstance(work, GateWork):
        _measure_gate(run, work.evaluator)
    else:
        _screen(run, work)


def _measure_gate(run: Run, evaluator: AnyEvaluator) -> None:
    for name, value in evaluator.measure_gate(run).items():
        run.metric(name, value)
        run.results[name] = value


def _screen(run: Run, work: ScreenWork) -> None:
    from optcore.evaluate.screening import screen

    screen(run, work.samples, work.sequence_length)


def _evaluate(run: Run, work: EvaluateWork) -> None:
    rows = [row for evaluator in work.evaluators for row in _measured(run, evaluator)]
    for row in rows:
        if row.result is not None:
            run.metric(row.name, row.result)
    run.results["measurements"] = [row.model_dump() for row in rows]


def _measured(run: Run, evaluator: AnyEvaluator) -> list[Measurement]:
    """Rows of one evaluator; none, with a notice, where it is for models of another kind."""
    if run.task in evaluator.tasks:
        return evaluator.measure(run)
    run.notice(f"{evaluator.title} was not measured: this model is for {run.task}")
    return []
