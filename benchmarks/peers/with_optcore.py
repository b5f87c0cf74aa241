"""Ours, as a recipe runs it: `default` or `nearest` and a scheme, `kv_` and a cache format, or `auto_` and a budget.

What transformers can load back and run in float32 is scored so, and the simulated model's KL is noted beside; the rest
is scored as simulated.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.peers.job import Job
from benchmarks.peers.score import load, score


class Simulated:
    """The quantized checkpoint as our evaluation computes it, called like a model of transformers."""

    def __init__(self, checkpoint: Path) -> None:
        from optcore.streaming.decoder import Decoder
        from optcore.streaming.simulate import Simulation

        self.decoder, self.simulation = Decoder(checkpoint), Simulation(checkpoint)

    def __call__(self, tokens_BT: Any) -> SimpleNamespace:
        """Logits [B, T, V]."""
        state = self.decoder.embed(tokens_BT)
        for index in range(len(self.decoder)):
            with self.decoder.layer(index) as layer, self.simulation.applied(self.decoder, index, layer):
                state = self.decoder.forward(index, layer, state, self.simulation.cache(index))
        return SimpleNamespace(logits=self.decoder.logits(state))


def quantize(job: Job) -> Any:
    """The optimize step holds reading and writing the checkpoint, which the peers' does not."""
    checkpoint = job.scratch / "checkpoint"
    checkpoint.mkdir()
    technique = _technique(job.recipe)
    run = _run(job, job.model, checkpoint)
    with job.timed():
        technique.apply(run)
    if "allocation" in run.results:
        job.measured["bits"] = run.results["allocation"]["bits"]
    simulated = Simulated(checkpoint)
    if technique.kv_cache or not _runs_in_float32(technique):
        return simulated
    job.measured["simulated_kl"] = score(job.source_logits(), simulated, job.windows("evaluation"))["kl"]
    return _loaded_back(job, checkpoint)


def _loaded_back(job: Job, checkpoint: Path) -> Any:
    from optcore.export import CompressedTensors

    export = job.scratch / "export"
    export.mkdir()
    CompressedTensors().write(_run(job, checkpoint, export))
    job.written(export)
    return load(export)


def _runs_in_float32(technique: Any) -> bool:
    """compressed-tensors unpacks FP4 and MX formats to bfloat16, whatever type a model is loaded in."""
    from optcore.export import CompressedTensors

    names = set(technique.schemes)
    return names <= CompressedTensors.schemes and not any(name.startswith(("nvfp4", "mxfp")) for name in names)


def _technique(recipe: str) -> Any:
    from optcore.techniques import AutoQuantize, Ptq

    role, _, name = recipe.partition(" ")
    kind, _, rest = name.partition("_")
    plain = {"rounding": "nearest", "scale_search": "max", "smoothing": "none"} if role == "nearest" else {}
    if kind == "kv":
        return Ptq(scheme="fp8", kv_cache=rest, ignore=("re:.*",), rounding="nearest", smoothing="none")
    if kind == "auto":
        return AutoQuantize(candidates=("nvfp4", "fp8", "none"), effective_bits=float(rest), **plain)
    return Ptq(scheme=name, **plain)


def _run(job: Job, checkpoint: Path, out: Path) -> Any:
    from benchmarks.ptq import CALIBRATION
    from optcore.run import Run

    return Run("benchmark", checkpoint, job.model, out, job.scratch / "spill", CALIBRATION, (), lambda event: None)
