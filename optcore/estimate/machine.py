"""The machine that this process is on, as far as costs depend on it."""

import os
import shutil
import subprocess
from pathlib import Path

from optcore.estimate.document import Machine
from optcore.gpus import gpu_names, visible_gpus
from optcore.host_memory import capacity_bytes

_ASKED = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_ANSWER_seconds = 10
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def this_machine(work: Path) -> Machine:
    """What an engine that starts now may use; `work` is its folder, or one that will be made."""
    names = gpu_names()
    return Machine(
        device="cuda" if names else "cpu",
        gpus=len(names),
        gpu_kind=names[0] if names else "",
        gpu_memory_bytes=_gpu_bytes() if visible_gpus() else None,
        host_memory_bytes=capacity_bytes(),
        cores=cores(),
        disk_free_bytes=shutil.disk_usage(_existing(work.absolute())).free,
    )


def cores(quota: Path = _QUOTA) -> int:
    """That our affinity, our control group and OpenMP's own setting leave."""
    own = len(os.sched_getaffinity(0))
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(threads):
        own = min(own, int(threads))
    try:
        most, period = quota.read_text().split()
    except (OSError, ValueError):  # no such controller
        return own
    return own if most == "max" else max(1, min(own, -(-int(most) // int(period))))


def _gpu_bytes() -> int | None:
    """Of the smallest card, as the driver says it; None where it says nothing."""
    try:
        done = subprocess.run(_ASKED, capture_output=True, text=True, timeout=_ANSWER_seconds, check=True)
        return min(int(line) for line in done.stdout.split()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
