"""A stage in a process of its own: a true peak memory, a freed GPU, and a crash that cannot take the run with it."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import ValidationError

from optcore.errors import Failure, OptError, RecipeError, StageCrashed
from optcore.events import AnyEvent, RunFailed, parse_event
from optcore.gang import Gang
from optcore.gpus import visible_gpus
from optcore.memory_use import gpu_peak
from optcore.numerics import stage_environment
from optcore.stage import StageTask, TechniqueWork
from optcore.techniques.training import Training

_CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
RESULTS = "results.json"
"""Beside the task file: what the stage process leaves for its record."""


class ReportedFailure(OptError):
    """A typed error that a stage process reported, carried on as it was said."""

    def __init__(self, reported: Failure) -> None:
        super().__init__(reported.message, remedy=reported.remedy, field=reported.field)
        self.reported = reported

    def failure(self, stage: str = "") -> Failure:
        """The failure as the stage said it."""
        return self.reported


class Usage(NamedTuple):
    """What a stage process took."""

    peak_memory_bytes: int
    """Of a stage with several processes the sum of theirs."""
    peak_gpu_memory_bytes: int | None = None
    """That torch reserved on one GPU; None where no GPU was used."""


def run_stage(task: StageTask, task_file: Path, emit: Callable[[AnyEvent], None]) -> Usage:
    """Run a task to its end and pass its events on. Raises the stage's typed error, or `StageCrashed`."""
    task_file.write_text(task.model_dump_json())
    command = [sys.executable, "-m", "optcore", "stage", str(task_file)]
    with Gang(command, _process_count(task), _environment(task)) as gang:
        failure = _relay(gang.output, emit)
    if failure:
        raise ReportedFailure(failure)
    if gang.status:
        raise _crash(task.name, gang.status)
    return Usage(gang.peak_memory_bytes, gpu_peak(Path(task.scratch)))


def _process_count(task: StageTask) -> int:
    """Raises `RecipeError` for more than the machine has GPUs, or without one cores: they would only wait."""
    technique = task.work.technique if isinstance(task.work, TechniqueWork) else None
    count = technique.process_count if isinstance(technique, Training) else 1
    most = visible_gpus() or max(2, os.cpu_count() or 1)
    if count > most:
        raise RecipeError(
            f"{count} processes are asked for, and this machine has room for {most}: one a GPU, or without one a core",
            remedy="lower `processes`, or leave it out",
            field="/chain",
        )
    return count


def _relay(output: IO[bytes], emit: Callable[[AnyEvent], None]) -> Failure | None:
    """Pass events on until all processes have ended; the first failure that one of them reported."""
    failure = None
    for line in output:
        try:
            event = parse_event(line)
        except ValidationError:
            sys.stderr.buffer.write(line)  # a library that prints on standard output must not break the protocol
            continue
        if isinstance(event, RunFailed):
            failure = failure or event.failure
        else:
            emit(event)
    return failure


def _environment(task: StageTask) -> dict[str, str]:
    """Only fetching may use the network and a credential."""
    if task.work.kind == "fetch":
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if name not in _CREDENTIALS}
    return {**stage_environment(kept), "HF_HUB_OFFLINE": "1"}


def _crash(stage: str, code: int) -> StageCrashed:
    if code == -signal.SIGKILL:
        return StageCrashed(
            f"stage {stage} was killed (SIGKILL)",
            remedy="most often the machine ran out of memory; use a larger one, or fewer calibration samples",
        )
    how = f"with status {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
    return StageCrashed(f"stage {stage} ended {how}", remedy="read the end of the engine's log")
