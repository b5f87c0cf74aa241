"""Rows of workers: which processes are there, what each can run, and when it was last heard of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, exists, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import SQLCoreOperations

from api.store.clock import in_seconds
from api.store.models import Host, Job, Worker

ALIVE_seconds = 60
"""A worker that was not heard of for so long is not counted on."""


_ALIVE = (Worker.seen_at > in_seconds(-ALIVE_seconds), Worker.draining.is_(False), Worker.unfit.is_(None))


@dataclass(frozen=True)
class Capacity:
    """What a worker can run."""

    host: str
    device: Literal["cuda", "cpu"] | None = None
    """None for a worker that runs no engine."""
    gpus: int = 0
    gpu_kind: str | None = None
    """Name of its GPUs as the driver says it, such as `NVIDIA H200`."""
    gpu_memory_bytes: int | None = None
    """Of the smallest."""

    @property
    def fits(self) -> ColumnElement[bool]:
        """True for the jobs that it may claim."""
        return _fits(literal(self.device), literal(self.gpu_kind or ""), literal(self.gpu_memory_bytes or 0))


def fits_one_that_is_there() -> ColumnElement[bool]:
    """True for the jobs that some worker which is alive and trusted may claim."""
    distrusted = select(Host.name).where(Host.quarantined_at.is_not(None))
    fits = _fits(Worker.device, func.coalesce(Worker.gpu_kind, ""), func.coalesce(Worker.gpu_memory_bytes, 0))
    return exists().where(*_ALIVE, Worker.device.is_not(None), Worker.host.not_in(distrusted), fits)


def _fits(device: SQLCoreOperations[Any], gpu_kind: Any, gpu_memory: Any) -> ColumnElement[bool]:
    return and_(
        or_(Job.device.is_(None), Job.device == device),
        or_(Job.gpu_memory_bytes.is_(None), Job.gpu_memory_bytes <= gpu_memory),
        or_(Job.gpu_kind.is_(None), func.strpos(func.lower(gpu_kind), func.lower(Job.gpu_kind)) > 0),
    )


def beat(
    session: Session, worker_id: str, capacity: Capacity, *, draining: bool = False, unfit: str | None = None
) -> None:
    """The worker is alive; `unfit` says why it takes no job at present."""
    state = {"draining": draining, "unfit": unfit}
    statement = insert(Worker).values(id=worker_id, **state, **asdict(capacity))
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now(), **state}))


def alive(session: Session) -> Sequence[Worker]:
    """Workers that were heard of lately and take work."""
    return session.scalars(select(Worker).where(*_ALIVE).order_by(Worker.id)).all()
