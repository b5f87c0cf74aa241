"""Run as a script between a worker and its engine: confines the engine, and leaves nothing of it behind.

    python -I -S leash.py PARENT_PID TERMS COMMAND...

Orphans of the engine's tree are adopted, so that whatever ends it (the engine itself, its worker's death or a SIGHUP
from the worker) ends every process of it, also those in sessions of their own. Standard library only, as `-S` says;
a process of its own, because Python code in a forked copy of a worker that has threads can deadlock.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

ORPHANED = 143
"""Exit status: the worker was gone before we began."""
GPU_BUSY = 75
"""Exit status: another process held a GPU for all the time that we may wait (`EX_TEMPFAIL`)."""

LOOK_seconds = 0.1

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_FOR_THE_ENGINE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Sent to the whole group: the engine acts on them, and we wait for what it does."""


def main() -> None:
    """Ends as the engine ended: with its exit status, or by the same signal."""
    parent, terms, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    signal.signal(signal.SIGHUP, lambda *_: _end_by(signal.SIGKILL))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _die_with(parent, signal.SIGHUP)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # weights and text of users do not belong into core files
    if terms["cgroup"]:
        _join(terms["cgroup"])
    _hold(terms["locks"], terms["lock_seconds"])
    status = _wait_for(_start(command, terms))
    if os.WIFSIGNALED(status):
        _end_by(signal.Signals(os.WTERMSIG(status)))
    _end_tree()
    os._exit(os.waitstatus_to_exitcode(status))


def _die_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send us a signal when the parent's thread that started us ends."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call above took effect
        os._exit(ORPHANED)


def _join(cgroup: str) -> None:
    with open(os.path.join(cgroup, "cgroup.procs"), "w") as processes:
        processes.write("0")


def _hold(locks: list[str], wait_seconds: float) -> None:
    """Take the lock of each GPU. The engine's processes inherit them, so one that cannot die keeps its GPU locked."""
    deadline = time.monotonic() + wait_seconds
    for path in locks:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        while not _is_locked_by_us(lock):
            if time.monotonic() >= deadline:
                sys.stderr.write(f"another process holds the GPU of {os.path.basename(path)}\n")
                sys.exit(GPU_BUSY)
            time.sleep(LOOK_seconds)
        os.set_inheritable(lock, True)


def _is_locked_by_us(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(command: list[str], terms: dict[str, Any]) -> int:
    """Fork the engine. Signals to the group wait meanwhile: half way they would reach neither side."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_ENGINE)
    leash = os.getpid()
    engine = os.fork()
    if engine == 0:
        _become(command, terms, leash)
    for number in _FOR_THE_ENGINE:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which an engine would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_ENGINE)
    return engine


def _become(command: list[str], terms: dict[str, Any], leash: int) -> NoReturn:
    """Give up what the engine must not have, then be the engine."""
    try:
        _die_with(leash, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(terms["oom_score"]))
        for name, value in terms["limits"].items():
            _limit(getattr(resource, name), value)
        os.umask(0o077)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_ENGINE)
        os.execvp(command[0], command)  # noqa: S606 - a fixed argument list, no shell
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        sys.stderr.flush()
        os._exit(127 if error.errno == errno.ENOENT else 126)


def _limit(which: int, value: int) -> None:
    """Lower a limit, for good; it cannot be raised beyond what we were given."""
    _, most = resource.getrlimit(which)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(which, (value, value))


def _wait_for(engine: int) -> int:
    """The engine's wait status; adopted orphans are reaped on the way."""
    while True:
        ended, status = os.wait()
        if ended == engine:
            return status


def _end_by(number: signal.Signals) -> NoReturn:
    """End everything, ourselves by the signal that says why."""
    _end_tree()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # a signal that does not kill


def _end_tree() -> None:
    """Kill our children, and those that their death leaves to us, until there is none."""
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)  # ours and not reaped yet, so the number is still its own
        for child in children:
            os.waitpid(child, 0)


def _children() -> list[int]:
    me, found = os.getpid(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _parent_of(entry) == me:
            found.append(int(entry))
    return found


def _parent_of(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except OSError:  # it ended while we looked
        return 0


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    main()
