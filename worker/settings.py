"""What only a worker needs to know, on top of the service's settings: the engine's command and the periods of time."""

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from api.settings import Settings
from optcore.events import Phase


def _words(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else shlex.split(value)


EnginePhase = Phase | Literal["starting"]
"""`starting` is before the first progress of a stage: imports, and the wait for another run of the same stage."""

_HOUR = 3600.0
_STALL_seconds: dict[EnginePhase, float] = {
    "starting": 6 * _HOUR,
    "downloading": _HOUR / 2,
    "hashing": _HOUR / 2,
    "loading": _HOUR,
    "calibrating": 2 * _HOUR,
    "searching": 2 * _HOUR,
    "training": _HOUR,
    "packing": _HOUR,
    "verifying": _HOUR,
    "evaluating": 2 * _HOUR,
}


def _over_the_defaults(value: Any) -> Any:
    given = json.loads(value) if isinstance(value, str) else value
    return _STALL_seconds | given if isinstance(given, dict) else given


class WorkerSettings(Settings):
    """Environment variables with the prefix `LATHE_`, read by the worker and the relay."""

    engine_command: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = (sys.executable, "-m", "optcore")
    """The engine, as words of a command line or a JSON list; `run` or `fetch` and their arguments are added."""
    signing_key: Path | None = None
    """PEM file of a private elliptic-curve key that signs every artifact (`model.sig`), for `lathe verify --key`. No
    engine is told of it; keep it where the engines' account cannot read it."""
    lease_seconds: float = Field(default=60, gt=0)
    """How long a job is a worker's without a sign of life. Some renewals must fit in."""
    engine_memory_bytes: int | None = Field(default=None, gt=0)
    """Most memory of one engine with all its processes, where its cgroup can hold it. Elsewhere, on a CPU worker, the
    address space of each process. Without it the machine's memory is the limit."""
    engine_processes: int = Field(default=8192, gt=0)
    """Most processes and threads of one engine by its cgroup; without one, of the worker's account."""
    engine_open_files: int = Field(default=65536, gt=0)
    """Most files that each process of an engine may have open."""
    engine_file_bytes: int = Field(default=2**40, gt=0)
    """Largest file that an engine may write."""
    engine_cgroup: Path | None = None
    """Folder of a cgroup (version 2) in which the worker may make one for each engine. Under systemd it is found
    by itself."""
    gpu_lock_dir: Path = Path("/tmp/lathe-gpus")  # noqa: S108 - made private, and a lock is not followed through a link
    """One folder for all workers of a host: an engine holds a file there locked for each of its GPUs."""
    gpu_wait_seconds: float = Field(default=30, ge=0)
    """How long an engine waits for a GPU that another one still holds."""
    stall_seconds: Annotated[
        dict[EnginePhase, Annotated[float, Field(ge=0)]], NoDecode, BeforeValidator(_over_the_defaults)
    ] = _STALL_seconds
    """How long an engine may say nothing in each phase of a stage before it is killed, as JSON; what is not named keeps
    its default, and 0 waits for ever. `starting` lasts until a stage's first progress."""
    stack_dump_seconds: float = Field(default=5, ge=0)
    """Time that a silent engine gets to write where it is, before it is killed."""
    min_free_bytes: int = Field(default=5 * 2**30, ge=0)
    """A worker with less room below `data_dir` takes no job."""
    renew_seconds: float = Field(default=15, gt=0)
    """Time between two renewals of a lease."""
    isolate_seconds: float = Field(default=45, gt=0)
    """After so long without a renewal, nothing is written or published until one succeeds."""
    partition_kill_seconds: float = Field(default=300, gt=0)
    """After so long without a renewal, the engine is killed: another worker has the job by now."""
    cancel_grace_seconds: float = Field(default=30, ge=0)
    """Between asking a cancelled engine to stop and killing it."""
    drain_grace_seconds: float = Field(default=10, ge=0)
    """The same when the worker is told to stop; below the container's grace."""
    flush_seconds: float = Field(default=1, gt=0)
    """Events are written in batches, so often."""
    log_limit_bytes: int = Field(default=50 * 1024 * 1024, gt=0)
    """Largest engine log of an attempt."""
    log_stored_bytes: int = Field(default=4 * 1024 * 1024, ge=0)
    """How much of an attempt's log is kept in the database, where its owner can read it."""
    relay_poll_seconds: float = Field(default=1, gt=0)
    """How long an outbox message can lie when its notification was lost."""
    watchdog_seconds: float = Field(default=15, gt=0)
    """How often an idle worker looks for queued jobs itself, in case the broker lost the message."""
    reconcile_seconds: float = Field(default=10, gt=0)
    """Time between two rounds of the reconciler."""
    lease_amnesty_seconds: float = Field(default=60, ge=0)
    """After the database came back (or the relay started) no lease expires for so long: one full lease."""
    sweep_seconds: float = Field(default=600, gt=0)
    """Time between two searches for what may be deleted."""
    detail_days: int = Field(default=30, ge=1)
    """Logs and metrics of a job are kept for so long after its end."""
    job_days: int = Field(default=0, ge=0)
    """Jobs are deleted so long after their end, with their files; 0 keeps them."""
    audit_days: int = Field(default=365, ge=1)
    """How long the audit log reaches back."""
    cache_days: float = Field(default=14, gt=0)
    """A cached stage that no job used for so long is deleted from the worker's disk."""
    cache_bytes: int = Field(default=0, ge=0)
    """Largest cache of stages of a project on a worker, the longest unused going first; 0 sets no limit."""
    removal_delay_seconds: float = Field(default=3600, ge=0)
    """Files of deleted jobs and lost attempts stay for so long; longer than a copy of the artifact store takes."""
    upload_patience_seconds: float = Field(default=900, ge=0)
    """How long an attempt waits for an artifact store that does not take one of its files."""
    webhook_timeout_seconds: float = Field(default=20, gt=0)
    """A receiver's time for a complete answer."""
    webhook_dead_limit: int = Field(default=3, ge=1)
    """A receiver is disabled when so many messages in a row were given up."""
    webhook_days: int = Field(default=30, ge=7)
    """How long messages that were delivered or given up are kept, with the log of their attempts."""

    @property
    def works_dir(self) -> Path:
        """The engine's caches on this host, one folder a project."""
        return self.data_dir / "work"

    def work_dir(self, project_id: str) -> Path:
        """The engine's content-addressed cache, shared by an owner's jobs on this host.

        Never by two owners: a cached download needs no credential, so it would open one's private models to the other.
        """
        return self.works_dir / hashlib.sha256(project_id.encode()).hexdigest()[:16]

    @property
    def staging_dir(self) -> Path:
        """Where artifacts lie on their way to or from a store elsewhere."""
        return self.data_dir / "staging"

    def attempt_dir(self, job_id: str, epoch: int) -> Path:
        """Where the recipe and the log of one attempt lie."""
        return self.data_dir / "jobs" / job_id / str(epoch)
