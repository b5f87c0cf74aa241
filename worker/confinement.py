"""What one engine process may use, and what the kernel says of its memory."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path

from optcore.host_memory import capacity_bytes
from worker import cgroup
from worker.cgroup import Cgroup
from worker.gpus import Gpu, locks
from worker.kernel import OomCounter
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_OOM_SCORE = 500
"""Added to the engine's, so that the kernel ends it before the worker that has to report it."""
_number = count(1)


@dataclass(frozen=True)
class Memory:
    """How an engine stood with memory at its end."""

    oom_killed: bool
    """The kernel killed one of its processes because memory ran out."""
    peak_bytes: int
    limit_bytes: int
    """Its own limit, or the machine's memory."""


@dataclass(frozen=True)
class Confinement:
    """Handed to the leash; see there."""

    folder: Path | None = None
    """Where the engine starts; the worker's own folder when absent."""
    limits: dict[str, int] = field(default_factory=dict)
    """Of each process, by the names of the `resource` module."""
    locks: tuple[Path, ...] = ()
    """One for each GPU."""
    lock_seconds: float = 0
    memory_bytes: int | None = None
    cgroup: Cgroup | None = None
    _oom: OomCounter = field(default_factory=OomCounter)

    @property
    def terms(self) -> str:
        """The above as the leash reads it."""
        return json.dumps(
            {
                "cgroup": str(self.cgroup.folder) if self.cgroup else "",
                "limits": self.limits,
                "locks": [str(lock) for lock in self.locks],
                "lock_seconds": self.lock_seconds,
                "oom_score": _OOM_SCORE,
            }
        )

    def look(self) -> None:
        """To be called often while the engine runs."""
        self._oom.look()

    def kill(self) -> None:
        """End what is left, also what has left the group of processes."""
        if self.cgroup:
            self.cgroup.kill()

    def memory(self, peak_bytes: int) -> Memory:
        """What is known of an engine that has ended, whose largest process had this peak.

        That is never below the worker's own size, of which every child is a copy for a moment; the group knows better.
        """
        own = self.cgroup.oom_kills if self.cgroup else None
        return Memory(
            oom_killed=self._oom.has_risen if own is None else own > 0,
            peak_bytes=(self.cgroup.peak_bytes if self.cgroup else 0) or peak_bytes,
            limit_bytes=self.memory_bytes or capacity_bytes(),
        )


@contextmanager
def confined(settings: WorkerSettings, gpus: Sequence[Gpu], folder: Path) -> Iterator[Confinement]:
    """For one engine process that uses these GPUs."""
    group = _make_group(settings)
    try:
        yield Confinement(
            folder=folder,
            limits=_limits(settings, group, on_cpu=not gpus),
            locks=locks(settings.gpu_lock_dir, gpus),
            lock_seconds=settings.gpu_wait_seconds,
            memory_bytes=settings.engine_memory_bytes,
            cgroup=group,
        )
    finally:
        if group:
            group.remove()


def _make_group(settings: WorkerSettings) -> Cgroup | None:
    parent = cgroup.delegated(settings.engine_cgroup)
    if parent is None:
        _say_once("no cgroup was delegated to this worker: an engine's processes are limited one by one")
        return None
    try:
        group = Cgroup(parent, f"lathe-{os.getpid()}-{next(_number)}")
        group.limit(memory_bytes=settings.engine_memory_bytes, processes=settings.engine_processes)
    except OSError as error:
        _say_once(f"cgroup {parent} is of no use ({error}): an engine's processes are limited one by one")
        return None
    return group


def _limits(settings: WorkerSettings, group: Cgroup | None, *, on_cpu: bool) -> dict[str, int]:
    limits = {"RLIMIT_NOFILE": settings.engine_open_files, "RLIMIT_FSIZE": settings.engine_file_bytes}
    if group is None:
        limits["RLIMIT_NPROC"] = settings.engine_processes
    if settings.engine_memory_bytes and not (group and group.limits_memory):
        if on_cpu:
            limits["RLIMIT_AS"] = settings.engine_memory_bytes
        else:  # CUDA reserves far more addresses than it uses memory
            _say_once("LATHE_ENGINE_MEMORY_BYTES has no effect: on a GPU worker it needs a delegated cgroup")
    return limits


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)
