"""What a run computed on, in words, without a library that would take hold of it."""

import os
import platform
from pathlib import Path

from optcore.gpus import gpu_names


def hardware() -> str:
    """The processor, its cores and the GPUs that this process may use, such as `x86_64, Intel(R) Xeon(R) 6980P,
    16 CPU cores, 2 x NVIDIA H200`."""
    names = gpu_names()
    gpus = (f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    parts = (platform.machine(), cpu_model(), f"{os.cpu_count()} CPU cores", *gpus)
    return ", ".join(part for part in parts if part)


def cpu_model(described: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor's name; empty where the system tells none, as on most Arm machines."""
    try:
        lines = described.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    rows = (line.partition(":") for line in lines)
    return next((" ".join(value.split()) for key, _, value in rows if key.strip() == "model name"), "")
