"""How much memory a process took at its highest, and what it says when there was too little."""

from pathlib import Path

from optcore.out_of_memory import NO_MEMORY

OUT_OF_MEMORY = 71
"""Status of a child that memory ran out for; `os.EX_OSERR`, which neither Python nor an engine ends with."""


def peak_memory_bytes() -> int:
    """Resident bytes of this process since it began.

    Not getrusage: its maximum starts at what the parent had when it started us.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def ran_out(error: Exception) -> bool:
    """Whether it says that memory ran out; of engines' libraries only the text does."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))
