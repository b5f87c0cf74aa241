"""What the tasks of a process share: settings, the database, its name. Made on first use, so after the pool forked."""

import os
import secrets
import socket
from dataclasses import dataclass
from functools import cache, cached_property

from api.files import ArtifactStore, open_store
from api.store.session import Sessions, make_engine, make_sessions
from api.store.workers import Capacity
from worker.capacity import capacity
from worker.fitness import Fitness
from worker.gpus import Gpu, GpusUnknown, visible
from worker.secrecy import keep_secrets
from worker.settings import WorkerSettings
from worker.staging import Staging


@dataclass(frozen=True)
class Context:
    """One process of a worker."""

    settings: WorkerSettings
    sessions: Sessions
    worker_id: str
    """Names a process, not a host: after a restart it is another one, so an old claim is never mistaken for ours."""
    capacity: Capacity
    gpus: tuple[Gpu, ...]
    fitness: Fitness

    @cached_property
    def store(self) -> ArtifactStore:
        """Where finished artifacts are."""
        return open_store(self.settings)

    @property
    def staging(self) -> Staging:
        """Where they lie on this host before and after."""
        return Staging(self.settings.staging_dir, self.sessions)


@cache
def settings() -> WorkerSettings:
    """The environment, read once; it holds secrets, which the engine could read in ours."""
    keep_secrets()
    return WorkerSettings()


@cache
def context() -> Context:
    """This process's context. A connection must not cross a fork: never call it in a process that forks later."""
    gpus = _gpus()
    return Context(
        settings=settings(),
        sessions=make_sessions(make_engine(settings().database_url)),
        worker_id=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
        capacity=capacity(gpus, settings().engine_memory_bytes),
        gpus=gpus,
        fitness=Fitness(settings(), gpus),
    )


def _gpus() -> tuple[Gpu, ...]:
    """Where the driver does not answer, none are counted on; the worker's fitness says so and takes no job."""
    try:
        return visible()
    except GpusUnknown:
        return ()
