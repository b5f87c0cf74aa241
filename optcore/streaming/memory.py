"""Memory that was freed, given back to the system."""

import ctypes


def return_free_memory() -> None:
    """Let the C library hand its free pages back, where it can (glibc).

    It keeps what programs free in medium sizes: fragments of every layer would stay until the process ends, and the
    peak would follow the model's depth.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
