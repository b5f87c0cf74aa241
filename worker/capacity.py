"""What this machine offers to jobs."""

import socket
from collections.abc import Sequence

from api.store.workers import Capacity
from worker.gpus import Gpu


def capacity(gpus: Sequence[Gpu]) -> Capacity:
    """Of a process that may use these GPUs; without one it runs engines on the CPU."""
    host = socket.gethostname()
    if not gpus:
        return Capacity(host, "cpu")
    return Capacity(host, "cuda", len(gpus), gpus[0].name, min(gpu.memory_bytes for gpu in gpus))
