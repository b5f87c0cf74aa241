"""How much of a GPU's memory is free, and what is said where that, or the machine's, is too little."""

import torch

from optcore.errors import OutOfMemory
from optcore.host_memory import ROOM

_GIB = 2**30


def gpu_bytes(device: torch.device) -> float:
    """Free memory of a GPU, with what torch keeps of it for tensors to come."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def check_room(doing: str, needed: float, there: float, what: str, remedy: str) -> None:
    """Raise `OutOfMemory` where what is to be done takes more bytes than are there."""
    if needed * ROOM > there:
        raise OutOfMemory(
            f"{doing} takes about {needed * ROOM / _GIB:.1f} GiB, {there / _GIB:.1f} GiB are free: {what}",
            remedy=remedy,
            field="/chain",
        )
