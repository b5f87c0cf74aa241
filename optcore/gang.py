"""The processes of one stage: they begin together, speak through one pipe and end together.

One, or as many as train a model together. A line that a process writes is in the pipe before its connections to the
others break, so the first failure that is read is the cause, and what the others say of it is not.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

STORE = "OPTCORE_STORE"
"""Names the file by which processes find each other: no port is taken, so jobs on one machine cannot meet."""
_MEMBERS = "members"
"""Beside it, the process ids of all."""
LOST_PEER = 76
"""Exit status of a process that another one of its stage left: the other knows why."""

_PR_SET_PDEATHSIG = 1
_BROKEN = re.compile(r"gloo/transport|Connection (closed|reset) by peer|NCCL.*(remote|peer|socket)", re.IGNORECASE)


class Gang:
    """Started when made. What is read from `output` ends when all of them have ended."""

    def __init__(self, command: list[str], count: int, environment: dict[str, str]) -> None:
        self.peak_memory_bytes = 0
        """The sum over all processes of each one's peak: they are in memory at the same time."""
        self._meeting = tempfile.mkdtemp(prefix="gang-") if count > 1 else ""
        self._lock = threading.Lock()
        self._ended_by_us: set[int] = set()
        self._processes: list[subprocess.Popen[bytes]] = []
        reading, writing = os.pipe()
        self.output: IO[bytes] = os.fdopen(reading, "rb")
        try:
            for rank in range(count):
                self._start(command, writing, environment | self._place(rank, count))
        except OSError:
            self._end_all()
            raise
        finally:
            os.close(writing)
        self._watchers = [threading.Thread(target=self._watch, args=(one,)) for one in self._processes]
        for watcher in self._watchers:
            watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind:
            with self._lock:
                self._end_all()
        for watcher in self._watchers:
            watcher.join()
        self.output.close()
        if self._meeting:
            shutil.rmtree(self._meeting, ignore_errors=True)

    @property
    def status(self) -> int:
        """Once all have ended: 0 where all did well; else how the first to fail did, negative for a signal."""
        own = [one.returncode for one in self._processes if one.pid not in self._ended_by_us]
        return next((code for code in own if code not in (0, LOST_PEER)), max(own))

    def _place(self, rank: int, count: int) -> dict[str, str]:
        """What a process must know of the others, under torchrun's names; ours, even where we were started by it."""
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        if count == 1:
            return place
        threads = max(1, (os.cpu_count() or 1) // count)
        alone = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(threads)}
        wanted = {name: os.environ.get(name, value) for name, value in alone.items()}
        return place | wanted | {STORE: os.path.join(self._meeting, "store")}

    def _start(self, command: list[str], writing: int, environment: dict[str, str]) -> None:
        process = subprocess.Popen(
            command,
            stdout=writing,
            env=environment,
            close_fds=False,  # whoever started us may have left us a GPU's lock, to be held for as long as we use it
            preexec_fn=partial(_die_with, os.getpid()),
        )
        self._processes.append(process)
        if self._meeting:
            with open(os.path.join(self._meeting, _MEMBERS), "a") as members:
                members.write(f"{process.pid}\n")

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a process; one that fails takes the others with it, which would wait for it for ever."""
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.peak_memory_bytes += usage.ru_maxrss * 1024
            if process.returncode:
                self._end_all()

    def _end_all(self) -> None:
        """Kill what runs; one that has ended, and waits for us to hear of it, ended by itself."""
        for process in self._processes:
            if process.returncode is None and not _has_ended(process.pid):
                self._ended_by_us.add(process.pid)
                os.kill(process.pid, signal.SIGKILL)


def members(store: str | None) -> list[int]:
    """Process ids of those that meet at a store, as far as they have been started; none without one."""
    if store is None:
        return []
    try:
        lines = Path(store).with_name(_MEMBERS).read_text().splitlines()
    except FileNotFoundError:  # the first of them is not noted yet
        return []
    return [int(line) for line in lines]


def has_lost_peer(error: Exception) -> bool:
    """Whether a process failed because another one of its stage is gone."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and bool(_BROKEN.search(str(error)))


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call took effect
        os._exit(1)
