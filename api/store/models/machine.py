"""Tables of the machinery: what is to be announced, who works, who leads, what may be deleted."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from api.store.models.base import Row, count, created


class OutboxMessage(Row):
    """Something to tell the broker once the transaction is committed. Bodies hold ids only."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("outbox_due_idx", "available_at", "id", postgresql_where=text("published_at IS NULL")),
        Index("outbox_published_idx", "published_at", postgresql_where=text("published_at IS NOT NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    topic: Mapped[str]
    payload: Mapped[dict[str, Any]]
    available_at: Mapped[datetime] = created()
    published_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = created()


class Worker(Row):
    """A worker process: what it can run, and when it was last heard of."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    device: Mapped[str | None]
    """`cuda` or `cpu`; absent for one that runs no engine."""
    gpus: Mapped[int] = count()
    gpu_kind: Mapped[str | None]
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the smallest of its GPUs."""
    host_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """That one engine may use."""
    cores: Mapped[int | None]
    disk_free_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Below the engines' work folder, as of `seen_at`."""
    started_at: Mapped[datetime] = created()
    seen_at: Mapped[datetime] = created()
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    unfit: Mapped[str | None]
    """Why it takes no job at present: a full disk, a GPU that is ill."""


class StageCost(Row):
    """A finished stage, as estimates learn from it: no tenant, no model, and it outlives its job."""

    __tablename__ = "stage_costs"
    __table_args__ = (Index(None, "machine", "kind", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    machine: Mapped[str]
    """Kind of machine, such as `cuda:NVIDIA H200`."""
    kind: Mapped[str]
    """Kind of stage, such as `ptq gptq`."""
    raw_seconds: Mapped[float]
    """By the formula alone."""
    seconds: Mapped[float]
    raw_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = created()


class Host(Row):
    """A machine of workers, and whether it is trusted with work."""

    __tablename__ = "hosts"

    name: Mapped[str] = mapped_column(primary_key=True)
    quarantined_at: Mapped[datetime | None]
    """Set when it lost job after job; an operator clears it."""
    trusted_at: Mapped[datetime | None]
    """When an operator last did; what was lost before counts no more."""


class Lease(Row):
    """Who leads: the holder of a name for a term, on the database's clock."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    term: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    until: Mapped[datetime]


class Tally(Row):
    """How often something has happened since the service was set up: counters that outlive the rows they counted."""

    __tablename__ = "tallies"

    kind: Mapped[str] = mapped_column(primary_key=True)
    labels: Mapped[list[str]] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    """Their sum."""
    until: Mapped[datetime]
    """What happened up to here is in it."""


class Removal(Row):
    """Stored files whose row is gone, and which therefore may go: a prefix in the artifact store."""

    __tablename__ = "removals"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = created()
