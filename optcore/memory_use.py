"""Memory that a stage's processes hold while they work: looked at by the clock, said as metrics by second.

The first process speaks for all. Its points are bounded: the longer a stage runs, the rarer they are.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optcore.events import GPU_MEMORY, MEMORY, AnyEvent, Metric
from optcore.gang import STORE, members

PERIOD_seconds = 2.0
"""Between the first points."""
_SHARE = 1 / 64
"""Of the time so far, between later ones: 64 points of the last two thirds, some 400 of ten hours."""
_PEAK = "peak-gpu-memory"
"""Name of the file that a process leaves, before its rank."""


@contextmanager
def memory_told(stage: str, emit: Callable[[AnyEvent], None]) -> Iterator[None]:
    """Say what is held every few seconds, on a thread of its own; the last word is said before the context ends."""
    over = threading.Event()

    def tell() -> None:
        began, elapsed = time.monotonic(), 0.0
        while not over.wait(pause_seconds(elapsed)):
            elapsed = time.monotonic() - began
            for name, held in _held().items():
                emit(Metric(stage=stage, name=name, value=held, step=round(elapsed)))

    teller = threading.Thread(target=tell, name="memory", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def pause_seconds(elapsed: float) -> float:
    """Until the next point, so long after the stage began."""
    return max(PERIOD_seconds, _SHARE * elapsed)


def leave_gpu_peak(folder: Path) -> None:
    """Leave what this process reserved at most on one of its GPUs; nothing where it used none."""
    if peak := _gpu_bytes("max_memory_reserved"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{_PEAK}.{os.environ.get('RANK', '0')}").write_text(str(peak))


def gpu_peak(folder: Path) -> int | None:
    """The most that one process of a stage left on one GPU; None where none used any."""
    return max((int(path.read_text()) for path in folder.glob(f"{_PEAK}.*")), default=None)


def _held() -> dict[str, int]:
    """Resident bytes of all processes of the stage, and what this one has reserved on its fullest GPU."""
    found = {MEMORY: sum(map(_resident_bytes, members(os.environ.get(STORE)) or [os.getpid()]))}
    reserved = _gpu_bytes("memory_reserved")
    return found if reserved is None else found | {GPU_MEMORY: reserved}


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _gpu_bytes(measure: str) -> int | None:
    """By torch's allocator, of the fullest GPU; None as long as nothing here used one. It imports no torch."""
    cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)  # another thread may be in the middle of the import
    if cuda is None or is_initialized is None or not is_initialized():
        return None
    of_device = getattr(cuda, measure)
    return max(int(of_device(device)) for device in range(cuda.device_count()))
