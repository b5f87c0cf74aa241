"""The tables. Rows of one job are deleted with it; nothing else cascades."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ACTIVE = ("running", "cancelling")
"""States in which a worker holds the job, and only then is there a lease."""


class Row(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
    }


def _created() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


def _count() -> Mapped[int]:
    return mapped_column(server_default=text("0"))


def _job_key(*, primary: bool = False) -> Mapped[str]:
    return mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=primary)


def _one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


class ApiKey(Row):
    """A key that speaks for an owner. Only its SHA-256 is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str]
    key_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _created()
    revoked_at: Mapped[datetime | None]


class Job(Row):
    """One run of a recipe. `status` is changed by `api.lifecycle` only."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("status", "queued", "running", "cancelling", "succeeded", "failed", "cancelled"),
        _one_of("publish_status", "not_requested", "pending", "uploading", "published", "failed"),
        CheckConstraint(
            "(status IN ('running', 'cancelling')) = (worker_id IS NOT NULL AND lease_until IS NOT NULL)", name="lease"
        ),
        CheckConstraint("(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="final"),
        Index("jobs_owner_idx", "owner_id", "id"),
        Index("jobs_lease_idx", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("jobs_wake_idx", "wake_at", postgresql_where=text("status = 'queued'")),
        Index(
            "jobs_publish_idx",
            "publish_wake_at",
            postgresql_where=text("publish_status = 'pending' OR publish_status = 'uploading'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    digest: Mapped[str]
    """SHA-256 of the recipe's canonical JSON."""
    status: Mapped[str] = mapped_column(server_default="queued")
    epoch: Mapped[int] = _count()
    """Raised by each claim; every write of a worker carries the one it was given."""
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = _count()
    """Claims so far."""
    losses: Mapped[int] = _count()
    """Attempts that ended for a reason that may not come again."""
    last_seq: Mapped[int] = _count()
    """The highest event number; raised under the row's lock, so there are no gaps."""
    wake_at: Mapped[datetime] = _created()
    """When a queued job that nobody claimed is announced again."""
    cancel_requested_at: Mapped[datetime | None]
    resolved: Mapped[dict[str, Any] | None]
    failure: Mapped[dict[str, Any] | None]
    artifact_digest: Mapped[str | None]
    publish_status: Mapped[str] = mapped_column(server_default="not_requested")
    publish_epoch: Mapped[int] = _count()
    publish_worker_id: Mapped[str | None]
    publish_wake_at: Mapped[datetime | None]
    """When a pending push is announced again, or an uploading one is given up."""
    publish_url: Mapped[str | None]
    publish_commit: Mapped[str | None]
    publish_failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = _created()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Stage(Row):
    """One resumable step of a job, as last reported."""

    __tablename__ = "stages"
    __table_args__ = (_one_of("status", "pending", "running", "succeeded", "cached", "failed", "cancelled"),)

    job_id: Mapped[str] = _job_key(primary=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    status: Mapped[str] = mapped_column(server_default="pending")
    phase: Mapped[str | None]
    done: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    key: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    seconds: Mapped[float | None]
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)


class Attempt(Row):
    """One claim of a job by a worker."""

    __tablename__ = "attempts"
    __table_args__ = (_one_of("state", "running", "succeeded", "failed", "cancelled", "lost", "released"),)

    job_id: Mapped[str] = _job_key(primary=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="running")
    failure: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime] = _created()
    finished_at: Mapped[datetime | None]


class Event(Row):
    """One line of a job's history."""

    __tablename__ = "events"

    job_id: Mapped[str] = _job_key(primary=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = _created()
    type: Mapped[str]
    data: Mapped[dict[str, Any]]


class Artifact(Row):
    """One file of a finished job. Only paths registered here are ever served."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = _job_key(primary=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]


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
    available_at: Mapped[datetime] = _created()
    published_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _created()


class WebhookEndpoint(Row):
    """A receiver of signed messages."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "owner_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]]
    sealed_secret: Mapped[str]
    created_at: Mapped[datetime] = _created()
    disabled_at: Mapped[datetime | None]
    """Set when the receiver said that it is gone, or never answered."""


class WebhookMessage(Row):
    """One payload for one endpoint; its id is the `webhook-id` of every attempt."""

    __tablename__ = "webhook_messages"
    __table_args__ = (
        _one_of("status", "pending", "delivered", "failed"),
        Index("webhook_messages_wake_idx", "wake_at", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str] = _job_key()
    type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = _count()
    wake_at: Mapped[datetime] = _created()
    """When a message that nobody sent is announced again."""
    created_at: Mapped[datetime] = _created()


class WebhookDelivery(Row):
    """One attempt to deliver a message. Bodies of answers are never kept."""

    __tablename__ = "webhook_deliveries"

    message_id: Mapped[str] = mapped_column(ForeignKey("webhook_messages.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    seconds: Mapped[float]
    at: Mapped[datetime] = _created()


class Credential(Row):
    """A Hub token, sealed, by owner and name."""

    __tablename__ = "credentials"

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sealed_token: Mapped[str]
    created_at: Mapped[datetime] = _created()
    updated_at: Mapped[datetime] = _created()


class IdempotencyKey(Row):
    """The stored answer to a POST."""

    __tablename__ = "idempotency_keys"

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    sealed_answer: Mapped[str | None]
    """Sealed, because the answer to a new webhook endpoint holds its secret."""
    created_at: Mapped[datetime] = _created()


class Worker(Row):
    """A worker process and when it was last heard of."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    started_at: Mapped[datetime] = _created()
    seen_at: Mapped[datetime] = _created()
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
