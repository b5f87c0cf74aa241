"""Why an engine died, out of what is left of it; and how long it may be silent."""

import signal
import time

import pytest

from optcore.errors import Failure, OutOfDisk, OutOfMemory, StageCrashed
from optcore.events import GPU_MEMORY, MEMORY, Metric, Progress, StageStarted
from worker.confinement import Memory
from worker.exits import Death, Stall, explain, stalled
from worker.watchdog import Watchdog, last_frames

GIB = 1024**3
CALM = Memory(oom_killed=False, peak_bytes=3 * GIB, limit_bytes=8 * GIB)
OOM = Memory(oom_killed=True, peak_bytes=8 * GIB, limit_bytes=8 * GIB)
NO_TEXT = Failure(kind="user_error", code="data_unusable", message="no text")
KILLED_STAGE = StageCrashed("stage 1-ptq was killed (SIGKILL)").failure("1-ptq")


def _explained(returncode: int, said: Failure | None = None, lines: str = "", memory: Memory = CALM) -> Failure:
    return explain(Death(returncode, said, "1-ptq", lines, memory))


@pytest.mark.parametrize(
    ("returncode", "said", "lines", "memory", "code", "retryable"),
    [
        (-signal.SIGKILL, None, "", CALM, "engine_crashed", True),
        (-signal.SIGKILL, None, "", OOM, "out_of_memory", False),
        (1, KILLED_STAGE, "", OOM, "out_of_memory", False),
        (1, KILLED_STAGE, "", CALM, "stage_crashed", True),
        (-signal.SIGSEGV, None, "", OOM, "engine_crashed", True),  # somebody else's memory ran out
        (-signal.SIGABRT, None, "terminate called after throwing 'std::bad_alloc'", CALM, "out_of_memory", False),
        (1, None, "MemoryError", CALM, "out_of_memory", False),
        (1, None, "torch.OutOfMemoryError: CUDA out of memory.", CALM, "out_of_memory", False),
        (1, None, "CUDA error: uncorrectable ECC error encountered", CALM, "gpu_failed", True),
        (1, None, "CUDA error: device-side assert triggered", CALM, "engine_crashed", True),
        (1, None, "OSError: [Errno 28] No space left on device", CALM, "out_of_disk", True),
        (75, None, "another process holds the GPU", CALM, "gpu_busy", True),
        (3, None, "", CALM, "engine_crashed", True),
        (1, OutOfDisk("no room").failure(), "", CALM, "out_of_disk", True),
        (1, NO_TEXT, "MemoryError", OOM, "data_unusable", False),
    ],
)  # fmt: skip
def test_every_end_has_its_reason(
    returncode: int, said: Failure | None, lines: str, memory: Memory, code: str, retryable: bool
) -> None:
    failure = _explained(returncode, said, lines, memory)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert failure.kind == {"out_of_memory": "out_of_memory", "data_unusable": "user_error"}.get(code, "infrastructure")


def test_a_lack_of_memory_says_how_much_there_was() -> None:
    for failure in (_explained(-9, memory=OOM), _explained(1, OutOfMemory("stage 1-ptq").failure("1-ptq"), memory=OOM)):
        assert "peak 8.00 GiB, limit 8.00 GiB" in failure.message
        assert failure.stage == "1-ptq"


def test_patience_depends_on_the_phase_and_begins_again_with_each_event() -> None:
    watchdog = Watchdog({"starting": 0, "loading": 0.05, "training": 60})
    time.sleep(0.06)
    assert not watchdog.has_lost_patience, "0 waits for ever"
    watchdog.hear(Progress(stage="s", phase="loading", done=0, total=1))
    assert not watchdog.has_lost_patience
    time.sleep(0.06)
    assert watchdog.has_lost_patience
    watchdog.hear(Progress(stage="s", phase="training", done=0, total=1))
    assert not watchdog.has_lost_patience
    watchdog.hear(StageStarted(stage="t", key="k"))
    assert watchdog.phase == "starting"


def test_a_clock_that_goes_on_is_no_sign_of_life() -> None:
    watchdog = Watchdog({"loading": 0.05, "starting": 0})
    watchdog.hear(Progress(stage="s", phase="loading", done=0, total=1))
    time.sleep(0.06)
    for name in (MEMORY, GPU_MEMORY):
        watchdog.hear(Metric(stage="s", name=name, value=1e9, step=2))
    assert watchdog.has_lost_patience
    watchdog.hear(Metric(stage="s", name="loss", value=1, step=2))
    assert not watchdog.has_lost_patience


def test_the_frames_are_the_innermost_of_each_main_thread() -> None:
    dump = [
        "some log line",
        "Thread 0x01 (most recent call first):",
        '  File "pool.py", line 1 in wait',
        "",
        "Current thread 0x02 (most recent call first):",
        *(f'  File "deep.py", line {line} in f' for line in range(30)),
        "Current thread 0x03 (most recent call first):",
        '  File "child.py", line 9 in _relay',
    ]
    frames = last_frames(dump).splitlines()
    assert frames[0] == '  File "deep.py", line 0 in f'
    assert frames[-1] == '  File "child.py", line 9 in _relay'
    assert len(frames) == 9
    assert frames[0] in stalled(Stall("training", 61), "\n".join(frames), "s").message
