"""What training will take, reckoned from headers before anything is loaded: a machine too small is told at once."""

from pathlib import Path
from typing import NamedTuple

import torch

from optcore.host_memory import machine_bytes, process_bytes
from optcore.streaming.free_memory import check_room, gpu_bytes
from optcore.streaming.reader import TensorReader

_MASTER_bytes, _GRADIENT_bytes, _MOMENTS_bytes = 4, 4, 8
_REMEDY = (
    "use `scope: scales`, `lora` or `block`, keep a teacher's answers with `teacher_top_k`, or use a larger machine"
)
_DRAFT_remedy = (
    "keep what the target computes with `features: kept`, name a smaller `vocabulary`, or use a larger machine"
)
_GIB = 2**30


class _Need(NamedTuple):
    """Bytes of one process."""

    loaded: float
    """The whole student: it is spread over the processes once each has it."""
    trained: float
    """Its part of weights, gradients and moments, and what keeps their form."""
    teacher: float
    """Whole in each process."""
    gathered: float
    """What one of them brings together for a checkpoint; nothing where it is all there already."""

    def peak(self, processes: int, gathered: float = 0.0) -> float:
        """The most that so many hold at once in one memory, one of them with what it gathers there."""
        return max(processes * self.loaded, processes * self.trained + gathered) + processes * self.teacher


def check_memory(
    student: Path,
    teacher: Path | None,
    *,
    moving: float,
    device: torch.device,
    processes: int = 1,
    master_bytes: float = _MASTER_bytes,
    constraints_bytes: float = 0.0,
) -> None:
    """Raise `OutOfMemory` where float32 weights, gradients and AdamW's moments do not fit beside the teacher, or where
    the machine cannot hold a checkpoint of them.

    `moving` is the share of the parameters that train, `master_bytes` what each of them all is held in,
    `constraints_bytes` what each process holds to keep a form of the weights. Processes have a GPU each; without one
    they share the machine's memory. Activations are not counted: gradient checkpointing and `micro_batch` make them as
    small as need be.
    """
    parameters, is_gpu = _parameters(student), device.type == "cuda"
    need = _Need(
        loaded=parameters * master_bytes,
        trained=parameters * (master_bytes + moving * (_GRADIENT_bytes + _MOMENTS_bytes)) / processes
        + constraints_bytes,
        teacher=_parameters(teacher) * (2 if is_gpu else 4) if teacher else 0.0,
        gathered=parameters * moving * (_MASTER_bytes + _MOMENTS_bytes) if is_gpu or processes > 1 else 0.0,
    )
    beside = ", and a teacher beside them" if teacher else ""
    shared = f", {constraints_bytes / _GIB:.1f} GiB to keep zeros or shared numbers" if constraints_bytes else ""
    what = f"{parameters} parameters, {moving:.0%} of them moving{shared}{beside}"
    if is_gpu:
        check_room("training", need.peak(1), gpu_bytes(device), what, _REMEDY)
        check_room(
            "a checkpoint, on its way to the disk,", need.gathered, min(machine_bytes(), process_bytes()), what, _REMEDY
        )
    else:
        check_room("training", need.peak(processes, need.gathered), machine_bytes(), what, _REMEDY)
        check_room("training", need.peak(1, need.gathered), process_bytes(), what, _REMEDY)


def check_draft_memory(
    target: int, draft: int, *, device: torch.device, processes: int = 1, remedy: str = _DRAFT_remedy
) -> None:
    """Raise `OutOfMemory` where a draft of so many parameters, which all train, does not fit beside so many of its
    target.

    Each process has both whole; see `check_memory` for what is not counted.
    """
    is_gpu = device.type == "cuda"
    needed = target * (2 if is_gpu else 4) + draft * (_MASTER_bytes + _GRADIENT_bytes + _MOMENTS_bytes)
    what = f"a draft of {draft} parameters, and its target beside it"
    if is_gpu:
        check_room("training", needed, gpu_bytes(device), what, remedy)
    else:
        check_room("training", processes * needed, machine_bytes(), what, remedy)
        check_room("training", needed, process_bytes(), what, remedy)


def _parameters(folder: Path) -> int:
    reader = TensorReader(folder)
    return sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
