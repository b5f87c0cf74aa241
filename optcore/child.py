"""A stage in a process of its own: a true peak memory, a freed GPU, and a crash that cannot take the run with it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from optcore.errors import Failure, OptError, StageCrashed
from optcore.events import AnyEvent, RunFailed, parse_event
from optcore.stage import StageTask

_CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PR_SET_PDEATHSIG = 1
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


def run_stage(task: StageTask, task_file: Path, emit: Callable[[AnyEvent], None]) -> Usage:
    """Run a task to its end and pass its events on. Raises the stage's typed error, or `StageCrashed`."""
    task_file.write_text(task.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-m", "optcore", "stage", str(task_file)],
        stdout=subprocess.PIPE,
        env=_environment(task),
        close_fds=False,  # whoever started us may have left us a GPU's lock, to be held for as long as we use it
        preexec_fn=partial(_die_with, os.getpid()),
    )
    failure = _relay(process, emit)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if failure:
        raise ReportedFailure(failure)
    if process.returncode:
        raise _crash(task.name, process.returncode)
    return Usage(usage.ru_maxrss * 1024)


def _relay(process: "subprocess.Popen[bytes]", emit: Callable[[AnyEvent], None]) -> Failure | None:
    failure = None
    assert process.stdout
    for line in process.stdout:
        try:
            event = parse_event(line)
        except ValidationError:
            sys.stderr.buffer.write(line)  # a library that prints on standard output must not break the protocol
            continue
        if isinstance(event, RunFailed):
            failure = event.failure
        else:
            emit(event)
    return failure


def _environment(task: StageTask) -> dict[str, str]:
    """Only fetching may use the network and a credential."""
    if task.work.kind == "fetch":
        return dict(os.environ)
    kept = {name: value for name, value in os.environ.items() if name not in _CREDENTIALS}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _crash(stage: str, code: int) -> StageCrashed:
    if code == -signal.SIGKILL:
        return StageCrashed(
            f"stage {stage} was killed (SIGKILL)",
            remedy="most often the machine ran out of memory; use a larger one, or fewer calibration samples",
        )
    how = f"with status {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
    return StageCrashed(f"stage {stage} ended {how}", remedy="read the end of the engine's log")


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call took effect
        os._exit(1)
