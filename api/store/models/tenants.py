"""Tables of tenants: projects, their keys and secrets, and what was done with them."""

from datetime import datetime

from sqlalchemy import BigInteger, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from api.store.models.base import Row, created, project_key


class Project(Row):
    """A tenant: whose jobs, keys, receivers and secrets nobody else sees. A limit that is absent does not bind."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_running: Mapped[int | None]
    """Jobs that workers hold at one time; more wait."""
    max_unfinished: Mapped[int | None]
    """Jobs that are not over; more are refused."""
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of finished artifacts; at the limit new jobs are refused."""
    max_gpu_seconds: Mapped[int | None] = mapped_column(BigInteger)
    """Seconds that workers held its jobs, times their GPUs, in the last 30 days."""
    created_at: Mapped[datetime] = created()


class ApiKey(Row):
    """A key that speaks for a project, within its scopes. Only its SHA-256 is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = project_key()
    name: Mapped[str] = mapped_column(server_default="")
    prefix: Mapped[str] = mapped_column(server_default="")
    """The key's first characters: enough to recognize it, not to use it."""
    key_sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = created()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""


class Credential(Row):
    """A Hub token, sealed, by project and name."""

    __tablename__ = "credentials"

    project_id: Mapped[str] = project_key(primary=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sealed_token: Mapped[str]
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = created()


class IdempotencyKey(Row):
    """The stored answer to a POST, or the job that it made: the answer to that is made of its row."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    project_id: Mapped[str] = project_key(primary=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    sealed_answer: Mapped[str | None]
    """Sealed, because the answer to a new webhook endpoint holds its secret."""
    job_id: Mapped[str | None]
    """No reference: it outlives its job."""
    created_at: Mapped[datetime] = created()


class AuditEntry(Row):
    """Who did what, and when. Rows are only added; no value of a secret is ever in one."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[str] = project_key()
    actor: Mapped[str]
    """Id of an API key, or `operator`."""
    action: Mapped[str]
    """Such as `job.cancel`."""
    target: Mapped[str]
    """Id or name of what it was done to."""
    request_id: Mapped[str] = mapped_column(server_default="")
    address: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = created()
