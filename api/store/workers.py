"""Rows of workers: which processes are there, what each can run, and when it was last heard of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import SQLCoreOperations

from api.store.clock import in_seconds
from api.store.models import ACTIVE, Host, Job, Worker

ALIVE_seconds = 60
"""A worker that was not heard of for so long is not counted on."""
LISTED_seconds = 24 * 3600
"""After so long without a word, a worker is not even listed."""


_IN_QUARANTINE = select(Host.name).where(Host.quarantined_at.is_not(None))
_TAKES_WORK = (
    Worker.seen_at > in_seconds(-ALIVE_seconds),
    Worker.draining.is_(False),
    Worker.unfit.is_(None),
    Worker.host.not_in(_IN_QUARANTINE),
)


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
    host_memory_bytes: int | None = None
    """That one engine may use."""
    cores: int | None = None

    @property
    def fits(self) -> ColumnElement[bool]:
        """True for the jobs that it may claim."""
        return _fits(literal(self.device), literal(self.gpu_kind or ""), literal(self.gpu_memory_bytes or 0))


def fits_one_that_is_there() -> ColumnElement[bool]:
    """True for the jobs that some worker which is alive and trusted may claim."""
    fits = _fits(Worker.device, func.coalesce(Worker.gpu_kind, ""), func.coalesce(Worker.gpu_memory_bytes, 0))
    return exists().where(*_TAKES_WORK, Worker.device.is_not(None), fits)


def _fits(device: SQLCoreOperations[Any], gpu_kind: Any, gpu_memory: Any) -> ColumnElement[bool]:
    return and_(
        or_(Job.device.is_(None), Job.device == device),
        or_(Job.gpu_memory_bytes.is_(None), Job.gpu_memory_bytes <= gpu_memory),
        or_(Job.gpu_kind.is_(None), func.strpos(func.lower(gpu_kind), func.lower(Job.gpu_kind)) > 0),
    )


def beat(
    session: Session,
    worker_id: str,
    capacity: Capacity,
    *,
    draining: bool = False,
    unfit: str | None = None,
    disk_free_bytes: int | None = None,
) -> None:
    """The worker is alive; `unfit` says why it takes no job at present."""
    state = {"draining": draining, "unfit": unfit, "disk_free_bytes": disk_free_bytes}
    statement = insert(Worker).values(id=worker_id, **state, **asdict(capacity))
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now(), **state}))


def alive(session: Session) -> Sequence[Worker]:
    """Workers that were heard of lately and take work: none of a host in quarantine."""
    return session.scalars(select(Worker).where(*_TAKES_WORK).order_by(Worker.id)).all()


class Seen(NamedTuple):
    """A worker as it was last heard of."""

    row: Worker
    is_away: bool
    """It was not heard of lately."""
    quarantined_at: datetime | None
    """Of its host, which gets no work."""
    job_id: str | None
    """Of the job that it holds, whosever that is."""
    project_id: str | None
    """Whose it is."""


def seen(session: Session, limit: int) -> list[Seen]:
    """Every worker that was heard of within `LISTED_seconds`, those that are there first, then by host and id."""
    is_away = Worker.seen_at <= in_seconds(-ALIVE_seconds)
    statement = (
        select(Worker, is_away, Host.quarantined_at, Job.id, Job.project_id)
        .outerjoin(Host, Host.name == Worker.host)
        .outerjoin(Job, and_(Job.worker_id == Worker.id, Job.status.in_(ACTIVE)))
        .where(Worker.seen_at > in_seconds(-LISTED_seconds))
        .order_by(is_away, Worker.host, Worker.id)
        .limit(limit)
    )
    return [Seen(*row) for row in session.execute(statement)]
