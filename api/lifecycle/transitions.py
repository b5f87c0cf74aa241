"""The transition tables, and the two moves that obey them: one of a job, one of its publishing."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from api.store import attempts, clock, events, jobs, outbox, stages, webhooks
from api.store.models import Job
from lathe.models import TERMINAL, JobStatus, PublishStatus

MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "cancelling", "succeeded", "failed"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""A run that ends while it is being cancelled keeps its result; the three last states are final."""

PUBLISH_MOVES: Mapping[PublishStatus, frozenset[PublishStatus]] = {
    "not_requested": frozenset({"pending"}),
    "pending": frozenset({"uploading", "published", "failed"}),
    "uploading": frozenset({"pending", "uploading", "published", "failed"}),
    "published": frozenset(),
    "failed": frozenset(),
}
"""`uploading` to itself is another worker taking over a push whose lease is over."""

MAX_INFRA_ATTEMPTS = 3
"""Attempts lost to the machine, after which the job fails."""
LEASE_seconds = 60
_UNHELD = {"worker_id": None, "lease_until": None}


def move(
    session: Session,
    job_id: str,
    to: JobStatus,
    *conditions: ColumnElement[bool],
    data: Mapping[str, Any],
    **values: Any,
) -> Job | None:
    """Change the status where the table and `conditions` allow it, with its event; None where they do not."""
    sources = [status for status, targets in MOVES.items() if to in targets]
    if to in TERMINAL:
        values["finished_at"] = func.now()
    if to not in {"running", "cancelling"}:
        values |= _UNHELD
    job = jobs.change(session, job_id, Job.status.in_(sources), *conditions, status=to, **values)
    if job is not None:
        events.append(session, job_id, job.last_seq, [(f"job.{to}", dict(data))])
    return job


def move_publish(
    session: Session,
    job_id: str,
    to: PublishStatus,
    *conditions: ColumnElement[bool],
    data: Mapping[str, Any],
    **values: Any,
) -> Job | None:
    """Change the publish status of a succeeded job likewise."""
    sources = [status for status, targets in PUBLISH_MOVES.items() if to in targets]
    allowed = (Job.status == "succeeded", Job.publish_status.in_(sources), *conditions)
    job = jobs.change(session, job_id, *allowed, publish_status=to, **values)
    if job is not None:
        events.append(session, job_id, job.last_seq, [(f"publish.{to}", dict(data))])
    return job


def to_queue(
    session: Session, job: Job, *conditions: ColumnElement[bool], state: str, failure: dict[str, Any] | None = None
) -> Job | None:
    """End an attempt without ending the job: queued again, announced after a delay that doubles with each loss."""
    lost = state != "released"
    losses = job.losses + lost
    delay_seconds = 5 * 2 ** (losses - 1) if lost else 0
    data = {"reason": state, "attempt": job.attempt, "failure": failure}
    wake_at = clock.in_seconds(delay_seconds + jobs.REANNOUNCE_seconds)
    moved = move(session, job.id, "queued", *conditions, data=data, losses=losses, wake_at=wake_at)
    if moved is not None:
        attempts.end(session, job.id, job.epoch, state, failure)
        stages.close(session, job.id, "pending")
        outbox.add(session, "run_job", {"job_id": job.id}, delay_seconds=delay_seconds)
    return moved


def to_failed(
    session: Session, job: Job, *conditions: ColumnElement[bool], failure: dict[str, Any], state: str = "failed"
) -> Job | None:
    """End the job with a failure."""
    moved = move(session, job.id, "failed", *conditions, data={"failure": failure}, failure=failure)
    if moved is not None:
        attempts.end(session, job.id, job.epoch, state, failure)
        stages.close(session, job.id, "failed", only=failure["stage"])
        stages.close(session, job.id, "cancelled")
        announce(session, moved, "job.failed")
    return moved


def to_cancelled(session: Session, job: Job, *conditions: ColumnElement[bool], state: str = "cancelled") -> Job | None:
    """End the job because its owner asked."""
    moved = move(session, job.id, "cancelled", *conditions, data={})
    if moved is not None:
        attempts.end(session, job.id, job.epoch, state)
        stages.close(session, job.id, "cancelled")
        announce(session, moved, "job.cancelled")
    return moved


def announce(session: Session, job: Job, type: str) -> None:
    """Tell the owner's webhook receivers. `sequence` orders what may arrive in any order."""
    payload = {
        "type": type,
        "timestamp": clock.now(session).isoformat().replace("+00:00", "Z"),
        "data": {
            "job_id": job.id,
            "name": job.recipe.get("name"),
            "status": job.status,
            "sequence": job.last_seq,
            "failure": job.failure,
            "artifact_digest": job.artifact_digest,
            "publish": {"status": job.publish_status, "url": job.publish_url, "failure": job.publish_failure},
        },
    }
    webhooks.enqueue(session, job.owner_id, job.id, type, payload)
