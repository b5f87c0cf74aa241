"""What training will take, reckoned from headers before anything is loaded: a machine too small is told at once."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.estimate.facts import Tensor, tensors_of
from optcore.host_memory import machine_bytes, process_bytes
from optcore.streaming.free_memory import check_room, gpu_bytes
from optcore.streaming.reader import TensorReader
from optcore.training.footprint import Footprint, beside, footprint

if TYPE_CHECKING:
    from optcore.techniques.training import Training
    from optcore.training.ranks import Ranks

_REMEDY = (
    "use `scope: scales`, `lora` or `block`, keep a teacher's answers with `teacher_top_k`, or use a larger machine"
)
_DRAFT_remedy = (
    "keep what the target computes with `features: kept`, name a smaller `vocabulary`, or use a larger machine"
)
_GIB = 2**30


def check_memory(
    technique: "Training", student: Path, teacher: Path | None, ranks: "Ranks", *, forms: float = 0.0
) -> None:
    """Raise `OutOfMemory` where what trains of a student does not fit beside its teacher, or where the machine cannot
    hold a checkpoint of it.

    `forms` are the bytes that each process holds to keep a form of the weights.
    """
    asked = sum(one.elements for one in _tensors(teacher)) if teacher else 0
    held = footprint(technique, _tensors(student), asked, forms=forms, processes=ranks.count)
    check_footprint(held, ranks.device)


def check_footprint(held: Footprint, device: torch.device) -> None:
    """Raise `OutOfMemory` where that does not fit. Processes have a GPU each; without one they share the machine's
    memory."""
    taught = ", and a teacher beside them" if held.teacher else ""
    shared = f", {held.forms / _GIB:.1f} GiB to keep zeros or shared numbers" if held.forms else ""
    share = held.moving / held.parameters
    _check(held, device, f"{held.parameters:.0f} parameters, {share:.0%} of them moving{shared}{taught}", _REMEDY)


def check_draft_memory(target: int, draft: int, device: torch.device, remedy: str = _DRAFT_remedy) -> None:
    """Raise `OutOfMemory` where a draft of so many parameters, which all train, does not fit beside so many of its
    target."""
    _check(beside(target, draft), device, f"a draft of {draft} parameters, and its target beside it", remedy)


def _check(held: Footprint, device: torch.device, what: str, remedy: str) -> None:
    if device.type == "cuda":
        check_room("training", held.gpu, gpu_bytes(device), what, remedy)
        there = min(machine_bytes(), process_bytes())
        check_room("a checkpoint, on its way to the disk,", held.checkpoint, there, what, remedy)
    else:
        check_room("training", held.host(held.processes), machine_bytes(), what, remedy)
        check_room("training", held.host(1), process_bytes(), what, remedy)


def _tensors(folder: Path) -> tuple[Tensor, ...]:
    reader = TensorReader(folder)
    return tensors_of({name: (tuple(reader.shape(name)), "F32") for name in reader.names})
