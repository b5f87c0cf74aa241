"""One resumable step, as documents: what its process is told, and what it leaves behind."""

import os
import platform
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optcore.draft_made import Made
from optcore.evaluate import AnyEvaluator, Classification, Engines
from optcore.export import AnyExport
from optcore.frozen import Frozen, digest_of
from optcore.references import Calibration, ModelRef, NeededText, TextSource
from optcore.report import Task
from optcore.runners import RUNNERS
from optcore.techniques import AnyTechnique, AttentionWindow, Prune, Ptq
from optcore.techniques.data import TrainingData
from optcore.techniques.draft import Draft
from optcore.techniques.target import Target
from optcore.techniques.training import Training
from optcore.version import ENGINE_VERSION, installed


class Grouping(Frozen):
    """A format that a recipe asks for, and all that changes sizes before it: its groups, and the blocks of the targets
    that hold it, must divide what is left."""

    prunes: tuple[Prune, ...]
    """What makes layers fewer or narrower; the inputs of linear layers in no more than one of them."""
    ptq: Ptq
    place: str
    """Where `ptq` stands in the recipe, a JSON Pointer."""
    exports: dict[str, AnyExport] = Field(default={})
    """Targets that hold the format for some sizes only, by JSON Pointer into the recipe."""


class Windowing(Frozen):
    """A window of attention that stands in the model's configuration or beside the weights, which the model says."""

    technique: AttentionWindow
    exports: dict[str, AnyExport]
    """Targets without a place for what stands beside the weights, by JSON Pointer into the recipe."""


class FetchWork(Frozen):
    """Pin and bring here everything that comes from outside."""

    kind: Literal["fetch"] = "fetch"
    model: ModelRef
    calibration: Calibration
    evaluations: tuple[int, ...] = ()
    """Lengths of the windows that will be evaluated, to see whether there is text enough."""
    classifications: tuple[Classification, ...] = ()
    """What will be measured on labelled texts, to see whether they can be read."""
    models: dict[str, ModelRef] = Field(default={})
    """Teachers, students and models to merge, by JSON Pointer into the recipe."""
    alike: tuple[str, ...] = ()
    """Those of the models that must be the source but for the values of its weights."""
    drafts: dict[str, ModelRef] = Field(default={})
    """Drafts for a target of the source's vocabulary, by JSON Pointer into the recipe."""
    texts: dict[str, NeededText] = Field(default={})
    """Training text, by JSON Pointer into the recipe."""
    grouping: Grouping | None = None
    """Whose groups must divide what the chain will leave of the model."""
    windowing: Windowing | None = None
    """A window that the targets may have no place for."""

    @property
    def is_pinned(self) -> bool:
        """Whether doing it again can only give the same: commits do not move, branches and folders do."""
        if any(evaluator.path for evaluator in self.classifications):
            return False
        models = (self.model, *self.models.values(), *self.drafts.values())
        texts = (self.calibration, *(needed.text for needed in self.texts.values()))
        return all(map(_is_pinned_model, models)) and all(map(_is_pinned_text, texts))


class DraftPlanWork(Frozen):
    """Find out whether a draft can be trained and written, before text is prepared for it."""

    kind: Literal["draft-plan"] = "draft-plan"
    technique: Draft


class DataWork(Frozen):
    """Prepare the windows that a technique trains on."""

    kind: Literal["data"] = "data"
    data: TrainingData
    sequence_length: int
    """Tokens a window; all models that see them hold as many."""
    training: int
    """Windows to train on."""
    validation: int
    """Windows to measure on."""


class TeacherWork(Frozen):
    """Ask a teacher once for its likeliest tokens at every position of every window."""

    kind: Literal["teacher"] = "teacher"
    top_k: int
    temperature: float


class FeaturesWork(Frozen):
    """Ask a target once for what a draft reads of it, at every position of every window."""

    kind: Literal["features"] = "features"
    technique: Draft
    """As far as features depend on it."""


class TechniqueWork(Frozen):
    """Apply a technique."""

    kind: Literal["technique"] = "technique"
    technique: AnyTechnique


class GateWork(Frozen):
    """Measure whether a technique's result is good enough."""

    kind: Literal["gate"] = "gate"
    evaluator: AnyEvaluator


class ScreenWork(Frozen):
    """Measure a candidate of a race, window by window, before anything is written for it."""

    kind: Literal["screen"] = "screen"
    samples: int
    """Windows of held-out text."""
    sequence_length: int


class ExportWork(Frozen):
    """Write the target format."""

    kind: Literal["export"] = "export"
    export: AnyExport


class EvaluateWork(Frozen):
    """Measure before and after."""

    kind: Literal["evaluate"] = "evaluate"
    evaluators: tuple[AnyEvaluator, ...]


AnyWork = (
    FetchWork
    | DraftPlanWork
    | DataWork
    | TeacherWork
    | FeaturesWork
    | TechniqueWork
    | GateWork
    | ScreenWork
    | ExportWork
    | EvaluateWork
)


class Inputs(Frozen):
    """Folders and files that a stage reads; paths are this machine's, digests are what keys are made of."""

    source: str = ""
    source_digest: str = ""
    checkpoint: str = ""
    checkpoint_digest: str = ""
    exported: str = ""
    exported_digest: str = ""
    target: str = "compressed-tensors"
    data_files: tuple[str, ...] = ()
    data_digest: str = ""
    labelled_digest: str = ""
    """Of the evaluators' own files."""
    task: Task = "text-generation"
    calibration: Calibration = Calibration()
    teacher: str = ""
    teacher_digest: str = ""
    text_files: tuple[str, ...] = ()
    """Training text, where it is not the recipe's own."""
    text_digest: str = ""
    windows: str = ""
    windows_digest: str = ""
    answers: str = ""
    """What a teacher said of the windows."""
    answers_digest: str = ""
    features: str = ""
    """What a target computed of the windows."""
    features_digest: str = ""
    draft: str = ""
    """The draft that guesses for the model; only what measures it is given it."""
    draft_digest: str = ""
    made: Made | None = None
    """How that did before, as a rule on the model that it was made for."""
    models: tuple[str, ...] = ()
    """Further models that a technique reads, in the order in which it names them."""
    models_digest: str = ""
    seed: int = 0

    @property
    def beside(self) -> dict[str, str]:
        """Digests of what only some techniques read."""
        named = ("teacher", "text", "windows", "answers", "features", "draft", "models")
        found = {name: getattr(self, f"{name}_digest") for name in named}
        found["made"] = digest_of(self.made) if self.made else ""
        return {name: digest for name, digest in found.items() if digest}


class StageTask(Frozen):
    """Everything that a stage process needs to know."""

    name: str
    work: AnyWork
    inputs: Inputs
    out: str = ""
    scratch: str = ""
    journal: str = ""
    cache: str = ""

    @property
    def key(self) -> str:
        """Content address of the result: equal work on equal inputs, wherever it runs."""
        inputs = self.inputs
        measured = {"samples": inputs.calibration.samples, "sequence_length": inputs.calibration.sequence_length}
        return digest_of(
            {
                "engine": ENGINE_VERSION,
                "environment": environment(self.work, inputs.task),
                "work": _without_gates(self.work.model_dump(mode="json")),
                "source": inputs.source_digest,
                "checkpoint": inputs.checkpoint_digest,
                "exported": inputs.exported_digest,
                "labelled": inputs.labelled_digest if isinstance(self.work, GateWork | EvaluateWork) else "",
                "data": {**measured, "digest": inputs.data_digest, "column": inputs.calibration.column},
                "seed": inputs.seed,
                **inputs.beside,
            }
        )


def environment(work: AnyWork, task: Task = "text-generation") -> dict[str, str]:
    """What the same work depends on beyond its inputs: the libraries that compute, on what, and for timings where."""
    if isinstance(work, FetchWork):
        return {}
    libraries = {name: installed(name) for name in ("torch", "transformers", *_made_by(work, task))}
    device = "cuda" if Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"
    machine = {"machine": platform.node()} if _is_timed(work) else {}
    return {**libraries, "device": device, **machine}


def _is_timed(work: AnyWork) -> bool:
    """Whether the result depends on how fast the machine is."""
    target = getattr(work.technique, "target", None) if isinstance(work, TechniqueWork) else None
    return isinstance(work, EvaluateWork) or (isinstance(target, Target) and target.measure == "latency")


def _made_by(work: AnyWork, task: Task) -> tuple[str, ...]:
    """Packages that compute for some techniques, targets, tasks and evaluators only."""
    if isinstance(work, ExportWork):
        return work.export.packages_for(task)
    if isinstance(work, EvaluateWork) and any(isinstance(evaluator, Engines) for evaluator in work.evaluators):
        return tuple(runner.package for runner in RUNNERS)
    technique = work.technique if isinstance(work, TechniqueWork) else None
    return ("peft",) if isinstance(technique, Training) and technique.has_adapters else ()


class StageRecord(Frozen):
    """What a finished stage leaves beside its files."""

    name: str
    key: str
    seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None = None
    """None where no GPU was used, and in records from before it was measured."""
    results: dict[str, Any] = Field(default={})
    files: dict[str, tuple[int, int]] = Field(default={})
    """Size in bytes and time of change in nanoseconds of each file. Weights may be links to files that others can write
    to, so a stage whose files changed is run again."""

    @property
    def reusable(self) -> bool:
        """Whether a later run may take it for its own; the stage says when not (`Run.do_again`)."""
        return bool(self.results.get("reusable", True))


def _is_pinned_model(model: ModelRef) -> bool:
    return bool(model.id) and _is_commit(model.revision)


def _is_pinned_text(text: TextSource) -> bool:
    return text.is_built_in or (text.path is None and _is_commit(text.revision))


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _without_gates(work: dict[str, Any]) -> dict[str, Any]:
    """A gate decides what happens next, and `compare` what is made beside it, not what a technique computes; nor does
    the number of processes it runs in, so that training goes on with another one."""
    if technique := work.get("technique"):
        left_out = ("gate", "fallback", "processes", "compare")
        return {**work, "technique": {k: v for k, v in technique.items() if k not in left_out}}
    return work
