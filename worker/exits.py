"""Why an engine ended with a status other than 0: its own word where it left one, else what the kernel and its log say.

| end | failure |
| --- | --- |
| it said why | as it said; for memory, with the peak and the limit |
| the kernel killed a process of it for memory, or its last lines say that there was none left | `out_of_memory` |
| its last lines say that the GPU or the disk failed | `gpu_failed`, `out_of_disk` |
| another engine held its GPU | `gpu_busy`, which is no loss |
| it fell silent and we killed it | `engine_stalled` |
| any other signal or status | `engine_crashed` |
"""

import signal
from dataclasses import dataclass

from optcore.errors import GPU_FAILED, NO_ROOM, Failure, StageCrashed
from optcore.out_of_memory import NO_MEMORY
from worker.confinement import Memory
from worker.leash import GPU_BUSY

GIB = 1024**3
NO_LOSS = frozenset({"gpu_busy"})
"""Codes of failures that say nothing about the job: it goes back to the queue as if it had not been tried."""


@dataclass(frozen=True)
class Death:
    """An engine that ended, and not well."""

    returncode: int
    """Negative: the signal that ended it. None of ours: those are orders, not failures."""
    said: Failure | None
    stage: str
    last_lines: str
    memory: Memory

    @property
    def was_killed(self) -> bool:
        """It, or the process of one of its stages, by a SIGKILL that was not ours."""
        by_stage = self.said is not None and self.said.code == StageCrashed.code and "SIGKILL" in self.said.message
        return by_stage or self.returncode == -signal.SIGKILL


def explain(death: Death) -> Failure:
    """The failure that its owner reads, and whether trying again may help."""
    said = death.said
    if said is not None and said.code != StageCrashed.code:
        return _with_memory(said, death.memory) if said.kind == "out_of_memory" else said
    if death.memory.oom_killed and death.was_killed:
        return _out_of_memory(death, "the kernel killed it because memory ran out")
    if death.returncode == GPU_BUSY:
        return _failure(death, "gpu_busy", "another process holds its GPU", "look for an engine that does not end")
    return _by_its_log(death) or said or _crashed(death)


@dataclass(frozen=True)
class Stall:
    """An engine that we killed because it said nothing for too long."""

    phase: str
    silent_seconds: float


def stalled(stall: Stall, frames: str, stage: str) -> Failure:
    """Its failure, with where it was as far as it could say."""
    return Failure(
        kind="infrastructure",
        code="engine_stalled",
        message=f"the engine said nothing for {stall.silent_seconds:.0f} s while {stall.phase}"
        + _below("it was at", frames),
        remedy="if it happens again, read the stacks in the log; raise LATHE_STALL_SECONDS for a phase that is so slow",
        stage=stage,
        retryable=True,
    )


def _by_its_log(death: Death) -> Failure | None:
    """What libraries print before they end the process."""
    if NO_MEMORY.search(death.last_lines):
        return _out_of_memory(death, "it had no memory left")
    if NO_ROOM.search(death.last_lines):
        return _failure(death, "out_of_disk", "there was no room left", "free space below LATHE_DATA_DIR")
    if GPU_FAILED.search(death.last_lines):
        return _failure(
            death, "gpu_failed", f"{_how(death)} after its GPU failed", "look for the GPU in the kernel log"
        )
    return None


def _crashed(death: Death) -> Failure:
    remedy = {
        -signal.SIGKILL: "somebody or something on the worker's machine killed it",
        -signal.SIGBUS: "most often a file that it had mapped was cut, or the disk was full",
    }.get(death.returncode, "if it happens again, read the log of the attempt on the worker")
    return _failure(death, "engine_crashed", _how(death), remedy)


def _out_of_memory(death: Death, how: str) -> Failure:
    failure = Failure(
        kind="out_of_memory",
        code="out_of_memory",
        message=f"the engine ran out of memory: {how}",
        remedy="use a larger machine, or fewer or shorter calibration samples",
        stage=_stage(death),
    )
    return _with_memory(failure, death.memory)


def _with_memory(failure: Failure, memory: Memory) -> Failure:
    """GPU memory is not in these numbers; what the engine said names it."""
    numbers = f"peak {memory.peak_bytes / GIB:.2f} GiB, limit {memory.limit_bytes / GIB:.2f} GiB"
    return failure.model_copy(update={"message": f"{failure.message} (host memory: {numbers})", "retryable": False})


def _failure(death: Death, code: str, what: str, remedy: str) -> Failure:
    return Failure(
        kind="infrastructure",
        code=code,
        message=f"the engine ended: {what}" + _below("its last lines", death.last_lines),
        remedy=remedy,
        stage=_stage(death),
        retryable=True,
    )


def _stage(death: Death) -> str:
    return death.said.stage if death.said and death.said.stage else death.stage


def _below(title: str, text: str) -> str:
    return f"; {title}:\n{text}" if text else ""


def _how(death: Death) -> str:
    if death.returncode >= 0:
        return f"it exited with status {death.returncode}"
    try:
        return f"it was killed by {signal.Signals(-death.returncode).name}"
    except ValueError:
        return f"it was killed by signal {-death.returncode}"
