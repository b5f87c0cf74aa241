"""The last step before a server program: take an identity, ask to die with the parent, exec.

Run as a script by `process.spawn`, so that nothing has to happen between fork and exec in a process that has threads:

    python -I -S child.py PARENT_PID SIGNAL IDENTITY FOLDER -- PROGRAM ARGUMENT...

The parent-death signal is asked for after the identity is taken, because taking one clears it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NOBODY = 65534


def become(identity: str) -> None:
    """`same`: stay. `namespace`: root outside, nobody inside, files stay root's. `nobody`: the plain user 65534."""
    if identity == "namespace":
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "user namespaces are not allowed here")
    elif identity == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def die_with(parent: int, signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the parent ended before its server started")


def main() -> None:
    parent, signal, identity, folder, _, *command = sys.argv[1:]
    become(identity)
    die_with(int(parent), int(signal))
    os.chdir(folder)
    os.execv(command[0], command)  # noqa: S606  no shell: a program path and its arguments, made by us


if __name__ == "__main__":
    main()
