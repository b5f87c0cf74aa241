"""Tables of jobs. All rows of one job are deleted with it."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Text, literal_column, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.store.models.base import Row, count, created, job_key, one_of, project_key

ACTIVE = ("running", "pausing", "cancelling")
"""States in which a worker holds the job, and only then is there a lease."""

# What lists are filtered by, word for word as it is indexed: PostgreSQL compares expressions, not their meaning.
MODEL = literal_column("coalesce((recipe -> 'model') ->> 'id', (recipe -> 'model') ->> 'path')", Text).label("model")
NAME = literal_column("lower(recipe ->> 'name')", Text).label("name")
TECHNIQUES = literal_column("jsonb_path_query_array(recipe, '$.chain[*].technique')", JSONB).label("techniques")
METADATA = literal_column("(recipe -> 'metadata')", JSONB).label("metadata")


class Job(Row):
    """A recipe and its runs. `status` is changed by `api.lifecycle` only."""

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("status", "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"),
        one_of("publish_status", "not_requested", "pending", "uploading", "published", "failed"),
        CheckConstraint(
            "(status IN ('running', 'pausing', 'cancelling')) = (worker_id IS NOT NULL AND lease_until IS NOT NULL)",
            name="lease",
        ),
        CheckConstraint("(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="final"),
        Index("jobs_project_idx", "project_id", "id"),
        Index("jobs_status_idx", "project_id", "status", "id"),
        Index("jobs_model_idx", "project_id", MODEL, "id"),
        Index("jobs_name_idx", NAME, postgresql_using="gin", postgresql_ops={"name": "gin_trgm_ops"}),
        Index("jobs_techniques_idx", TECHNIQUES, postgresql_using="gin"),
        Index("jobs_metadata_idx", METADATA, postgresql_using="gin", postgresql_ops={"metadata": "jsonb_path_ops"}),
        Index("jobs_created_idx", "created_at"),
        Index("jobs_finished_idx", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index(
            "jobs_line_idx",
            text("priority DESC"),
            "queued_at",
            "id",
            postgresql_where=text("status = 'queued'"),
        ),
        Index("jobs_unpublished_idx", "id", postgresql_where=text("publish_status = 'failed'")),
        Index("jobs_lease_idx", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("jobs_wake_idx", "wake_at", postgresql_where=text("status = 'queued'")),
        Index(
            "jobs_unfinished_idx",
            "project_id",
            "status",
            postgresql_where=text("status NOT IN ('succeeded', 'failed', 'cancelled')"),
        ),
        Index(
            "jobs_publish_idx",
            "publish_wake_at",
            postgresql_where=text("publish_status = 'pending' OR publish_status = 'uploading'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = project_key()
    recipe: Mapped[dict[str, Any]]
    request_id: Mapped[str] = mapped_column(server_default="")
    """Of the request that submitted it."""
    traceparent: Mapped[str | None]
    """The span of that request, in the form of W3C Trace Context, where traces are on."""
    digest: Mapped[str]
    """SHA-256 of the recipe's canonical JSON."""
    status: Mapped[str] = mapped_column(server_default="queued")
    epoch: Mapped[int] = count()
    """Raised by each claim; every write of a worker carries the one it was given."""
    worker_id: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = count()
    """Claims so far."""
    losses: Mapped[int] = count()
    """Attempts of this run that ended for a reason that may not come again."""
    run_number: Mapped[int] = mapped_column(server_default=text("1"))
    """Raised by each retry of a job that had failed or was cancelled."""
    priority: Mapped[int] = count()
    """Higher ones are claimed first."""
    device: Mapped[str | None]
    """`cuda` or `cpu`, when only such a worker may claim it."""
    gpu_kind: Mapped[str | None]
    """Part of the name of the GPU that it needs."""
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory that one GPU must have."""
    max_run_seconds: Mapped[int | None]
    """Limit on the time in workers' hands, over all attempts of a run."""
    max_queue_seconds: Mapped[int | None]
    """Limit on each wait in the queue."""
    run_seconds: Mapped[float] = count()
    """Spent by the attempts of this run that are over."""
    queued_at: Mapped[datetime] = created()
    """When it last joined the queue."""
    claimed_at: Mapped[datetime | None]
    """When the present or last attempt began."""
    not_before: Mapped[datetime] = created()
    """No claim before this: the pause after a loss."""
    last_seq: Mapped[int] = count()
    """The highest event number; raised under the row's lock, so there are no gaps."""
    wake_at: Mapped[datetime] = created()
    """When a queued job that nobody claimed is announced again."""
    cancel_requested_at: Mapped[datetime | None]
    resolved: Mapped[dict[str, Any] | None]
    failure: Mapped[dict[str, Any] | None]
    artifact_digest: Mapped[str | None]
    publish_to: Mapped[dict[str, Any] | None]
    """Where the artifact is pushed: the recipe's wish, or a later one."""
    publish_status: Mapped[str] = mapped_column(server_default="not_requested")
    publish_epoch: Mapped[int] = count()
    publish_attempt: Mapped[int] = count()
    """Tries since it was last asked for."""
    publish_worker_id: Mapped[str | None]
    publish_wake_at: Mapped[datetime | None]
    """When a pending push is announced again, or an uploading one is given up."""
    publish_url: Mapped[str | None]
    publish_commit: Mapped[str | None]
    publish_pull_requests: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """Numbers of the pull requests that the push goes through, by `repository@branch`: a repeat opens no second one."""
    publish_failure: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = created()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Stage(Row):
    """One resumable step of a job, as last reported."""

    __tablename__ = "stages"
    __table_args__ = (
        one_of("status", "pending", "running", "succeeded", "cached", "failed", "cancelled"),
        Index("stages_finished_idx", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    job_id: Mapped[str] = job_key(primary=True)
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
    peak_gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """On the fullest GPU."""
    machine: Mapped[str | None]
    """Kind of machine that it was expected to take that on, such as `cuda:NVIDIA H200`."""
    estimate: Mapped[dict[str, Any] | None]
    """What it was expected to take."""


class Attempt(Row):
    """One claim of a job by a worker."""

    __tablename__ = "attempts"
    __table_args__ = (
        one_of("state", "running", "succeeded", "failed", "cancelled", "lost", "released", "paused"),
        Index(None, "host", "finished_at"),
        Index("attempts_finished_idx", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    )

    job_id: Mapped[str] = job_key(primary=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    run_number: Mapped[int] = mapped_column(server_default=text("1"))
    worker_id: Mapped[str]
    host: Mapped[str] = mapped_column(server_default="")
    gpus: Mapped[int] = count()
    """GPUs that the worker held meanwhile."""
    device: Mapped[str | None]
    """`cuda` or `cpu`; absent where nobody said so."""
    gpu_kind: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="running")
    failure: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime] = created()
    finished_at: Mapped[datetime | None]


class Event(Row):
    """One line of a job's history."""

    __tablename__ = "events"

    job_id: Mapped[str] = job_key(primary=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = created()
    type: Mapped[str]
    data: Mapped[dict[str, Any]]


class MetricPoint(Row):
    """One measured number of a stage. A stage that runs again writes over what it measured before."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = job_key(primary=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float]
    at: Mapped[datetime] = created()


class LogChunk(Row):
    """What the engine wrote on standard error between two flushes, secrets blanked."""

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = job_key(primary=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    at: Mapped[datetime] = created()
    text: Mapped[str]


class Artifact(Row):
    """One file of a finished job. Only paths registered here are ever served."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = job_key(primary=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
