"""An engine in a process of its own, with a time limit; its standard error is this process's own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from optcore.serving.memory import OUT_OF_MEMORY
from optcore.serving.session import Served, ServingTask

_SEE_LOG = "; the end of the engine's log says why"


class EngineFailed(Exception):
    """An engine that could not be measured; the message says how it ended, for people."""


class EngineStopped(EngineFailed):
    """One that gave no answer for want of time or memory, or was killed: measured again, it may."""


def run_engine(engine: str, folder: Path, task: ServingTask, scratch: Path, limit_seconds: float) -> Served:
    """Measure an exported folder. Raises `EngineFailed`, or `EngineStopped`; why is then in the log."""
    task_file = scratch / "task.json"
    command = [sys.executable, "-m", "optcore.serving", engine, str(folder), str(task_file)]
    try:
        task_file.write_text(json.dumps(task._asdict()))
        done = subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=_environment(task.threads),
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineStopped(f"it took longer than {limit_seconds:g} s") from error
    except subprocess.CalledProcessError as error:
        raise _ended(error.returncode) from error
    except OSError as error:  # of the machine: no memory for another process, no room for its task
        raise EngineStopped(f"it could not be started: {error}") from error
    try:
        return Served(**json.loads(done.stdout))
    except (ValueError, TypeError) as error:  # a library may end the process with status 0
        raise EngineFailed(f"it ended without an answer{_SEE_LOG}") from error


def _environment(threads: int) -> dict[str, str]:
    """Every engine on the same cores, and none on a GPU: what they measure is held against each other."""
    fixed = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed}


def _ended(status: int) -> EngineFailed:
    """A signal is no answer, whichever it is: libraries abort for want of memory too."""
    if status == OUT_OF_MEMORY:
        return EngineStopped("it ran out of memory")
    if status == -signal.SIGKILL:
        return EngineStopped("it was killed (SIGKILL), most often for memory")
    if status < 0:
        return EngineStopped(f"it ended by signal {-status} ({signal.strsignal(-status)}){_SEE_LOG}")
    return EngineFailed(f"it ended with status {status}{_SEE_LOG}")
