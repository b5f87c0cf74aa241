"""What training will take, reckoned from headers before anything is loaded: a machine too small is told at once."""

import os
import resource
from pathlib import Path

import torch

from optcore.errors import OutOfMemory
from optcore.streaming.reader import TensorReader

_CGROUP = Path("/sys/fs/cgroup")
_MASTER_bytes, _GRADIENT_bytes, _MOMENTS_bytes = 4, 4, 8
_ROOM = 1.1  # allocators, buffers and libraries
_GIB = 2**30


def check_memory(
    student: Path,
    teacher: Path | None,
    *,
    moving: float,
    device: torch.device,
    processes: int = 1,
    master_bytes: float = _MASTER_bytes,
) -> None:
    """Raise `OutOfMemory` where float32 weights, gradients and AdamW's moments do not fit beside the teacher.

    `moving` is the share of the parameters that train, `master_bytes` what each of them all is held in. Activations are
    not counted: gradient checkpointing and `micro_batch` make them as small as need be.
    """
    parameters = _parameters(student)
    own = parameters * (master_bytes + moving * (_GRADIENT_bytes + _MOMENTS_bytes)) / processes
    beside = _parameters(teacher) * (2 if device.type == "cuda" else 4) if teacher else 0.0
    needed, there = (own + beside) * _ROOM, available_bytes(device)
    if needed > there:
        raise OutOfMemory(
            f"training takes about {needed / _GIB:.1f} GiB, {there / _GIB:.1f} GiB are free: {parameters} parameters, "
            f"{moving:.0%} of them moving{', and a teacher beside them' if teacher else ''}",
            remedy="use `scope: scales`, `lora` or `block`, keep a teacher's answers with `teacher_top_k`, "
            "or use a larger machine",
            field="/chain",
        )


def available_bytes(device: torch.device) -> float:
    """Free memory of a GPU, or what this process may still take of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [_of_machine(), _of_cgroup(), *(_of_process(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))]
    return max(0.0, min(limits))


def _of_machine() -> float:
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return float(facts["MemAvailable"].split()[0]) * 1024


def _of_cgroup() -> float:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else float(limit) - float(used)


def _of_process(kind: int) -> float:
    limit, _ = resource.getrlimit(kind)
    used = int(Path("/proc/self/statm").read_text().split()[0 if kind == resource.RLIMIT_AS else 5])
    return float("inf") if limit == resource.RLIM_INFINITY else float(limit - used * os.sysconf("SC_PAGE_SIZE"))


def _parameters(folder: Path) -> int:
    reader = TensorReader(folder)
    return sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
