"""How to tell that memory ran out. It imports next to nothing, for processes that have none left."""

import re

NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|ALLOC_FAILED|std::bad_alloc"
    r"|MemoryError|(failed|unable) to allocate",
    re.IGNORECASE,
)
"""What torch, the engines, their allocators and the system say when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, of the machine or its accelerator; torch says so in several ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and bool(NO_MEMORY.search(str(error)))
