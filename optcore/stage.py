"""One resumable step, as documents: what its process is told, and what it leaves behind."""

import os
import platform
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optcore.evaluate import AnyEvaluator, Classification
from optcore.export import AnyExport
from optcore.frozen import Frozen, digest_of
from optcore.references import BUILT_IN, Calibration, ModelRef
from optcore.report import Task
from optcore.techniques import AnyTechnique
from optcore.version import ENGINE_VERSION, installed


class FetchWork(Frozen):
    """Pin and bring here everything that comes from outside."""

    kind: Literal["fetch"] = "fetch"
    model: ModelRef
    calibration: Calibration
    evaluations: tuple[int, ...] = ()
    """Lengths of the windows that will be evaluated, to see whether there is text enough."""
    classifications: tuple[Classification, ...] = ()
    """What will be measured on labelled texts, to see whether they can be read."""

    @property
    def is_pinned(self) -> bool:
        """Whether doing it again can only give the same: commits do not move, branches and folders do."""
        data = self.calibration
        data_is_pinned = not data.path and (data.dataset == BUILT_IN or _is_commit(data.revision))
        has_files = any(evaluator.path for evaluator in self.classifications)
        return bool(self.model.id) and _is_commit(self.model.revision) and data_is_pinned and not has_files


class TechniqueWork(Frozen):
    """Apply a technique."""

    kind: Literal["technique"] = "technique"
    technique: AnyTechnique


class GateWork(Frozen):
    """Measure whether a technique's result is good enough."""

    kind: Literal["gate"] = "gate"
    evaluator: AnyEvaluator


class ExportWork(Frozen):
    """Write the target format."""

    kind: Literal["export"] = "export"
    export: AnyExport


class EvaluateWork(Frozen):
    """Measure before and after."""

    kind: Literal["evaluate"] = "evaluate"
    evaluators: tuple[AnyEvaluator, ...]


AnyWork = FetchWork | TechniqueWork | GateWork | ExportWork | EvaluateWork


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
    seed: int = 0


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
                "environment": environment(self.work),
                "work": _without_gates(self.work.model_dump(mode="json")),
                "source": inputs.source_digest,
                "checkpoint": inputs.checkpoint_digest,
                "exported": inputs.exported_digest,
                "labelled": inputs.labelled_digest if isinstance(self.work, GateWork | EvaluateWork) else "",
                "data": {**measured, "digest": inputs.data_digest, "column": inputs.calibration.column},
                "seed": inputs.seed,
            }
        )


def environment(work: AnyWork) -> dict[str, str]:
    """What the same work depends on beyond its inputs: the libraries that compute, on what, and for timings where."""
    if isinstance(work, FetchWork):
        return {}
    libraries = {name: installed(name) for name in ("torch", "transformers")}
    device = "cuda" if Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu"
    machine = {"machine": platform.node()} if isinstance(work, EvaluateWork) else {}
    return {**libraries, "device": device, **machine}


class StageRecord(Frozen):
    """What a finished stage leaves beside its files."""

    name: str
    key: str
    seconds: float
    peak_memory_bytes: int
    results: dict[str, Any] = Field(default={})
    files: dict[str, tuple[int, int]] = Field(default={})
    """Size in bytes and time of change in nanoseconds of each file. Weights may be links to files that others can write
    to, so a stage whose files changed is run again."""


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _without_gates(work: dict[str, Any]) -> dict[str, Any]:
    """A gate decides what happens next, not what a technique computes."""
    if technique := work.get("technique"):
        return {**work, "technique": {k: v for k, v in technique.items() if k not in ("gate", "fallback")}}
    return work
