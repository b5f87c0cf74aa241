"""What this machine offers to jobs, asked of the driver: the worker itself never loads torch."""

import os
import socket
import subprocess
from functools import cache

from api.store.workers import Capacity

_ASK = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
MIB = 1024**2


@cache
def capacity() -> Capacity:
    """Of this process, which sees the GPUs of CUDA_VISIBLE_DEVICES; without one it runs engines on the CPU."""
    host, gpus = socket.gethostname(), _gpus()
    if not gpus:
        return Capacity(host, "cpu")
    return Capacity(host, "cuda", len(gpus), gpus[0][0], min(memory for _, memory in gpus))


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each GPU that we may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return []
    chosen = [] if visible is None else ["--id=" + visible]
    try:
        said = subprocess.run([*_ASK, *chosen], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in said.splitlines() if "," in line]
    return [(name.strip(), int(memory) * MIB) for name, memory in rows if memory.strip().isdecimal()]
