"""Run as a script: tie this process to its parent's life, then become the command given on the command line.

The kernel clears the parent-death signal on fork but keeps it over exec, so setting it here, between the two, needs no
Python code in a forked copy of a worker that has threads (which can deadlock). Standard library only: see `-I -S`.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """`leash.py PARENT_PID COMMAND...`: exits 143 when the parent is gone already, else never returns."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call above took effect
        os._exit(143)
    os.execvp(command[0], command)  # noqa: S606 - a fixed argument list, no shell


if __name__ == "__main__":
    main()
