"""What this machine offers to jobs."""

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from api.store.workers import Capacity
from optcore.estimate.machine import cores
from optcore.host_memory import capacity_bytes
from worker.gpus import Gpu


def capacity(gpus: Sequence[Gpu], engine_memory_bytes: int | None = None) -> Capacity:
    """Of a process that may use these GPUs; without one it runs engines on the CPU.

    `engine_memory_bytes` is the operator's limit for one engine.
    """
    return Capacity(
        host=socket.gethostname(),
        device="cuda" if gpus else "cpu",
        gpus=len(gpus),
        gpu_kind=gpus[0].name if gpus else None,
        gpu_memory_bytes=min((gpu.memory_bytes for gpu in gpus), default=None),
        host_memory_bytes=memory_bytes(engine_memory_bytes),
        cores=cores(),
    )


def memory_bytes(engine_memory_bytes: int | None = None) -> int:
    """That one engine may use: the least of the operator's limit, our control groups' and the machine's memory."""
    here = capacity_bytes()
    return min(engine_memory_bytes or here, here)


def disk_free_bytes(folder: Path) -> int | None:
    """Below a folder; None where it cannot be looked at, which `worker.fitness` says in words."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
