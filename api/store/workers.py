"""Rows of workers: which processes are there, what each can run, and when it was last heard of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.clock import in_seconds
from api.store.models import Job, Worker

ALIVE_seconds = 60
"""A worker that was not heard of for so long is not counted on."""


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
        kind, memory = literal(self.gpu_kind or ""), self.gpu_memory_bytes or 0
        return (
            or_(Job.device.is_(None), Job.device == self.device)
            & or_(Job.gpu_memory_bytes.is_(None), Job.gpu_memory_bytes <= memory)
            & or_(Job.gpu_kind.is_(None), func.strpos(func.lower(kind), func.lower(Job.gpu_kind)) > 0)
        )


def beat(session: Session, worker_id: str, capacity: Capacity, *, draining: bool = False) -> None:
    """The worker is alive."""
    statement = insert(Worker).values(id=worker_id, draining=draining, **asdict(capacity))
    session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now(), "draining": draining})
    )


def alive(session: Session) -> Sequence[Worker]:
    """Workers that were heard of lately and take work."""
    fresh = (Worker.seen_at > in_seconds(-ALIVE_seconds), Worker.draining.is_(False))
    return session.scalars(select(Worker).where(*fresh).order_by(Worker.id)).all()


def capacity_of(row: Worker) -> Capacity:
    """What a worker said of itself."""
    device: Literal["cuda", "cpu"] | None = None if row.device is None else ("cuda" if row.device == "cuda" else "cpu")
    return Capacity(row.host, device, row.gpus, row.gpu_kind, row.gpu_memory_bytes)
