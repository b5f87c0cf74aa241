"""Ours: the `ptq` technique as a recipe runs it, exported and loaded back by transformers where its target can."""

from pathlib import Path
from typing import Any

from benchmarks.peers.job import Job
from benchmarks.peers.score import load


def quantize(job: Job) -> Any:
    """Our compressed-tensors export, as transformers loads it. The time holds reading and writing the checkpoint."""
    from optcore.export import CompressedTensors

    checkpoint, export = job.scratch / "checkpoint", job.scratch / "export"
    checkpoint.mkdir()
    export.mkdir()
    technique = _technique(job.recipe)
    with job.timed():
        technique.apply(_run(job, job.model, checkpoint))
    CompressedTensors().write(_run(job, checkpoint, export))
    job.written(export)
    return load(export)


def _technique(recipe: str) -> Any:
    from optcore.techniques import Ptq

    role, _, name = recipe.partition(" ")
    plain = {"scale_search": "max"} if role == "nearest" else {}
    return Ptq(scheme=name, **plain)


def _run(job: Job, checkpoint: Path, out: Path) -> Any:
    from benchmarks.ptq import CALIBRATION
    from optcore.run import Run

    return Run("benchmark", checkpoint, job.model, out, job.scratch / "spill", CALIBRATION, (), lambda event: None)
