"""The transition tables, and the two moves that obey them: one of a job, one of its publishing."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Double, case, cast, func
from sqlalchemy.orm import Session

from api.lifecycle.announcements import announce, announce_failure
from api.store import attempts, clock, events, hosts, jobs, outbox, pushes, queue, removals, stages
from api.store.models import ACTIVE, Job
from lathe.models import TERMINAL, JobStatus, PublishStatus

MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    "queued": frozenset({"running", "paused", "cancelled", "failed"}),
    "running": frozenset({"queued", "pausing", "cancelling", "succeeded", "failed"}),
    "pausing": frozenset({"paused", "cancelling", "succeeded", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}
"""A run that ends while it is being paused or cancelled keeps its result. The three last states are final, but for the
retry of a job that failed or was cancelled, which begins a new run of it."""

PUBLISH_MOVES: Mapping[PublishStatus, frozenset[PublishStatus]] = {
    "not_requested": frozenset({"pending"}),
    "pending": frozenset({"uploading", "published", "failed"}),
    "uploading": frozenset({"pending", "uploading", "published", "failed"}),
    "published": frozenset(),
    "failed": frozenset({"pending"}),
}
"""`uploading` to itself is another worker taking over a push whose lease is over; `failed` to `pending` its owner's
wish to try again."""

MAX_INFRA_ATTEMPTS = 3
"""Attempts lost to the machine, after which the job fails."""
LEASE_seconds = 60
RELEASED_seconds = 15
"""Wait of a job that its worker could not begin."""
_SPENT_seconds = case(
    (Job.worker_id.is_not(None), func.coalesce(cast(func.extract("epoch", func.now() - Job.claimed_at), Double), 0)),
    else_=0,
)
"""Of the attempt that ends, if one does: an UPDATE computes with the values before it."""


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
    values.setdefault("finished_at", func.now() if to in TERMINAL else None)
    if to not in ACTIVE:
        values = {"run_seconds": Job.run_seconds + _SPENT_seconds, "worker_id": None, "lease_until": None} | values
    job = jobs.change(session, job_id, Job.status.in_(sources), *conditions, status=to, **values)
    if job is not None:
        events.append(session, job_id, job.last_seq, [(f"job.{to}", dict(data))])
        if to not in ACTIVE:
            _let_the_next_one_in(session, job)
    return job


def _let_the_next_one_in(session: Session, job: Job) -> None:
    """Where a project's limit kept a job waiting, the end of an attempt makes room for it."""
    if (held_back := queue.held_back(session, job.project_id, but=job.id)) is not None:
        outbox.add(session, "run_job", {"job_id": held_back})


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
        if to != "uploading" and (waiting := pushes.next_in_turn(session, job)) is not None:
            outbox.add(session, "publish", {"job_id": waiting})
    return job


def to_queue(
    session: Session, job: Job, *conditions: ColumnElement[bool], state: str, failure: dict[str, Any] | None = None
) -> Job | None:
    """End an attempt without ending the job: queued again, announced after a delay that doubles with each loss.

    One that is released is no loss, and waits only when a failure says why.
    """
    lost = state != "released"
    losses = job.losses + lost
    delay_seconds = 5 * 2 ** (losses - 1) if lost else (failure is not None) * RELEASED_seconds
    data = {"reason": state, "attempt": job.attempt, "failure": failure}
    moved = move(session, job.id, "queued", *conditions, data=data, losses=losses, **waiting(delay_seconds))
    if moved is not None:
        end_attempt(session, job, state, failure)
        stages.close(session, job.id, "pending")
        call_a_worker(session, moved, delay_seconds=delay_seconds)
        announce(session, moved, "job.queued")
    return moved


def waiting(delay_seconds: float = 0) -> dict[str, Any]:
    """Columns of a job that joins the queue."""
    return {
        "queued_at": func.now(),
        "not_before": clock.in_seconds(delay_seconds),
        "wake_at": clock.in_seconds(delay_seconds + jobs.REANNOUNCE_seconds),
    }


def call_a_worker(session: Session, job: Job, *, delay_seconds: float = 0) -> None:
    """Announce a queued job. Whoever hears it takes the job that is first in line, which may be another."""
    outbox.add(session, "run_job", {"job_id": job.id}, delay_seconds=delay_seconds)


def to_paused(
    session: Session, job: Job, *conditions: ColumnElement[bool], state: str = "paused", failure: Any = None
) -> Job | None:
    """Set the job aside because its owner asked; what is finished stays."""
    moved = move(session, job.id, "paused", *conditions, data={"reason": state, "failure": failure})
    if moved is not None:
        end_attempt(session, job, state, failure)
        stages.close(session, job.id, "pending")
        announce(session, moved, "job.paused")
    return moved


def to_failed(
    session: Session, job: Job, *conditions: ColumnElement[bool], failure: dict[str, Any], state: str = "failed"
) -> Job | None:
    """End the job with a failure."""
    moved = move(session, job.id, "failed", *conditions, data={"failure": failure}, failure=failure)
    if moved is not None:
        end_attempt(session, job, state, failure)
        stages.close(session, job.id, "failed", only=failure["stage"])
        stages.close(session, job.id, "cancelled")
        announce_failure(session, moved, failure)
    return moved


def to_cancelled(session: Session, job: Job, *conditions: ColumnElement[bool], state: str = "cancelled") -> Job | None:
    """End the job because its owner asked."""
    moved = move(session, job.id, "cancelled", *conditions, data={})
    if moved is not None:
        end_attempt(session, job, state)
        stages.close(session, job.id, "cancelled")
        announce(session, moved, "job.cancelled")
    return moved


def end_attempt(session: Session, job: Job, state: str, failure: dict[str, Any] | None = None) -> None:
    """Close the present attempt, if there is one. A host that loses job after job gets no more of them.

    What an attempt wrote that did not succeed can be read by nobody, so it may go.
    """
    host = attempts.end(session, job.id, job.epoch, state, failure)
    if host is not None and state != "succeeded":
        removals.add(session, f"{job.id}/{job.epoch}")
    lost = state == "lost" or (failure or {}).get("kind") == "infrastructure"
    if host and lost:
        hosts.judge(session, host)
