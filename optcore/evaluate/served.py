"""The exported result in the engine that serves it, and the source in transformers, one after the other."""

import json
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.conditional import load_conditional
from optcore.deployment import formats_of
from optcore.errors import OptError, typed_error
from optcore.evaluate.reference import Reference, write_reference
from optcore.host_memory import machine_bytes
from optcore.quantization import load_quantization
from optcore.report import EngineRun
from optcore.runners import TRANSFORMERS, Runner, find_runner
from optcore.serving.process import EngineFailed, EngineStopped, run_engine
from optcore.serving.session import ServingTask
from optcore.sizes import shapes, weight_bytes
from optcore.targets import family_of

if TYPE_CHECKING:
    from optcore.evaluate.engines import Engines
    from optcore.run import Run

_ROOM = 3  # loading needs the file and the unpacked tensors at once
_FILES = {"gguf": ("model*.gguf",), "onnx": ("*.onnx", "*.onnx.data")}
"""Weights of targets that do not hold them in safetensors."""
_OF_THE_MACHINE = ("out_of_memory", "infrastructure")
"""Kinds of errors that another attempt may not meet."""


def measure_engines(run: "Run", evaluator: "Engines") -> list[EngineRun]:
    """The source's run and the result's; one that cannot be measured is left out with a notice, and fails no job."""
    assert run.export
    runner, why = _runner(run)
    if runner is None:
        _miss(run, f"the {run.target} result was not measured in an engine: {why}", lasts=True)
    if runner is None and not evaluator.source:
        return []
    try:
        reference = write_reference(run, evaluator)
    except (OptError, OSError, RuntimeError, ValueError, MemoryError) as failed:  # torch's own for memory among them
        traceback.print_exc()  # to the log: a finished checkpoint is not lost for it
        error = typed_error(failed, run.stage)
        why = f"the {run.target} result was not measured in an engine, for want of a reference: {error}"
        _miss(run, why, lasts=error.kind not in _OF_THE_MACHINE)
        return []
    found, task = [], _task(run, evaluator, reference)
    if evaluator.source and reference.logits and not load_conditional(run.source):
        found.append(_measured(run, TRANSFORMERS, None, task, evaluator.time_limit_seconds))
    run.progress("evaluating", 1, 2)
    if runner:
        found.append(_measured(run, runner, run.export, task, evaluator.time_limit_seconds))
    run.progress("evaluating", 2, 2)
    return [measured for measured in found if measured]


def _miss(run: "Run", why: str, *, lasts: bool) -> None:
    """Say it now, and leave it for the report that compares all results; what does not last is tried by the next run
    that comes to this stage."""
    run.notice(why)
    if not lasts:
        run.do_again()
    missing = run.results.setdefault("not_in_engines", [])
    assert isinstance(missing, list)
    missing.append(why)


def _runner(run: "Run") -> tuple[Runner | None, str]:
    if load_conditional(run.checkpoint):
        return None, "engines do not read conditional.json, and would run the model without what it says"
    config = json.loads((run.checkpoint / "config.json").read_text())
    formats = formats_of(load_quantization(run.checkpoint))
    return find_runner(run.target, formats, family_of(config, shapes(run.source)), run.task)


def _task(run: "Run", evaluator: "Engines", reference: Reference) -> ServingTask:
    """A prompt and what is written behind it fit into the model, the prompt first."""
    prompt = min(evaluator.prompt_tokens, max(1, reference.longest - evaluator.new_tokens))
    new = min(evaluator.new_tokens, reference.longest - prompt) if run.task == "text-generation" else 0
    return ServingTask(
        kind=run.task,
        tokens=str(reference.tokens),
        reference=str(reference.logits or ""),
        prompt_tokens=prompt,
        new_tokens=new,
        threads=torch.get_num_threads(),
    )


def _measured(
    run: "Run", runner: Runner, exported: Path | None, task: ServingTask, limit_seconds: float
) -> EngineRun | None:
    """The exported result, or without one the source."""
    folder, target = (exported, run.target) if exported else (run.source, "dense")
    size = _file_bytes(folder, target)
    unpacked = max(size, weight_bytes(run.source)) if runner is TRANSFORMERS else size
    try:
        _check_memory(unpacked * _ROOM)
        served = run_engine(runner.engine, folder, task, run.scratch, limit_seconds)
    except EngineFailed as error:
        what = f"{target} result" if exported else "source"
        lasts = not isinstance(error, EngineStopped)
        _miss(run, f"the {what} was not measured in {runner.engine}: {error}", lasts=lasts)
        return None
    return EngineRun(
        engine=runner.engine,
        engine_version=runner.version,
        target=target,
        is_source=exported is None,
        file_bytes=size,
        threads=task.threads,
        prompt_tokens=task.prompt_tokens,
        new_tokens=task.new_tokens,
        **served._asdict(),
    )


def _check_memory(needed: int) -> None:
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise EngineFailed("the model does not fit into this machine's memory as a whole")
    if needed > machine_bytes():
        raise EngineStopped("the model does not fit into this machine's free memory as a whole")


def _file_bytes(folder: Path, target: str) -> int:
    if target not in _FILES:
        return weight_bytes(folder)
    return sum(path.stat().st_size for pattern in _FILES[target] for path in folder.glob(pattern))
