"""The GPUs that this process may use, as the driver names and judges them: the worker itself never loads torch."""

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

_ASK = (
    "nvidia-smi",
    "--query-gpu=uuid,name,memory.total,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader,nounits",
)
_MIB = 1024**2
_UNKNOWN = frozenset({"[N/A]", "N/A", "[Not Supported]"})
ANSWER_seconds = 30


@dataclass(frozen=True)
class Gpu:
    """One card."""

    uuid: str
    name: str
    memory_bytes: int
    trouble: str = ""
    """Why no job should run on it; empty when it is well."""


class GpusUnknown(Exception):
    """The driver's tool is there, and does not answer."""


def visible() -> tuple[Gpu, ...]:
    """Those of CUDA_VISIBLE_DEVICES; none where there is no driver. Raises `GpusUnknown`."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen == "":
        return ()
    try:
        said = _answer([*_ASK, *([] if chosen is None else [f"--id={chosen}"])])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise GpusUnknown(f"nvidia-smi cannot be started: {error.strerror}") from error
    return tuple(_gpu(line) for line in said.splitlines() if line.count(",") >= 3)


def _answer(command: Sequence[str]) -> str:
    """What a program prints. One that hangs in a broken driver cannot be killed, so it is not waited for."""
    with TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            status = process.wait(ANSWER_seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            raise GpusUnknown(f"nvidia-smi has not answered for {ANSWER_seconds} s") from error
        said.seek(0)
        text = said.read().decode(errors="replace")
    if status != 0:
        raise GpusUnknown(f"nvidia-smi: {text.strip()[-200:]}")
    return text


def _gpu(line: str) -> Gpu:
    uuid, rest = line.split(",", 1)
    name, memory, errors = (word.strip() for word in rest.rsplit(",", 2))
    memory_bytes = int(memory) * _MIB if memory.isdecimal() else 0
    return Gpu(uuid.strip(), name, memory_bytes, _trouble(memory, errors))


def _trouble(memory: str, errors: str) -> str:
    """A card that fell off its bus or waits for a reset answers with words where numbers belong."""
    if not memory.isdecimal():
        return f"its memory is {memory}"
    if errors in _UNKNOWN or errors == "0":
        return ""
    return f"{errors} uncorrectable memory errors" if errors.isdecimal() else f"its error counter is {errors}"


def locks(folder: Path, gpus: Sequence[Gpu]) -> tuple[Path, ...]:
    """The file of each card that an engine holds locked for its life, always in one order. Makes their folder."""
    if gpus:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tuple(sorted(folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', gpu.uuid)}.lock" for gpu in gpus))


def is_held(lock: Path) -> bool:
    """Whether an engine, perhaps one whose worker is gone, still has the card."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
