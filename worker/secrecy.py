"""Keeps a worker's environment from its engine, which runs under the same account and knows its parent's number."""

import ctypes
import os

_PR_SET_DUMPABLE = 4


def keep_secrets() -> None:
    """Leave `/proc/<pid>/environ` and the memory of this process to root, also after a fork. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
