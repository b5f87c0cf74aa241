"""What the reconciler does for jobs whose worker, message or machine was lost. Two reconcilers are harmless."""

from sqlalchemy.orm import Session

from api.lifecycle.publishing import give_up_stale_uploads
from api.lifecycle.timeouts import ran_too_long, waited_too_long
from api.lifecycle.transitions import (
    MAX_INFRA_ATTEMPTS,
    LEASE_seconds,
    to_cancelled,
    to_failed,
    to_paused,
    to_queue,
)
from api.store import jobs, outbox, webhook_messages
from api.store.models import Job
from optcore.errors import Failure

_LOST = Failure(
    kind="infrastructure",
    code="worker_lost",
    message=f"the worker that ran this job was lost {MAX_INFRA_ATTEMPTS} times",
    remedy="look at the workers' logs and memory, then retry the job: finished stages are kept",
    retryable=True,
)


def expire_leases(session: Session) -> int:
    """End the attempts whose lease is over: how many. Their jobs are queued again, cancelled, or failed."""
    expired = jobs.with_expired_lease(session)
    for job in expired:
        _lose(session, job)
    return len(expired)


def enforce_deadlines(session: Session) -> int:
    """End jobs that waited too long, and those that their worker let run too long: how many.

    One that its owner wants cancelled is, whoever notices: its worker would end it so too (`out_of_time`).
    """
    late = jobs.with_deadline_passed(session, grace_seconds=2 * LEASE_seconds)
    for job in late:
        if job.status == "cancelling":
            to_cancelled(session, job, state="lost")
        else:
            failure = waited_too_long(job) if job.status == "queued" else ran_too_long(job)
            to_failed(session, job, failure=failure, state="lost")
    return len(late)


def republish_stuck(session: Session) -> int:
    """Announce again what was announced long ago without effect (the broker may have lost it): how many."""
    queued = jobs.reannounce(session, "run_job", Job.wake_at, Job.status == "queued")
    for job_id in queued:
        outbox.add(session, "run_job", {"job_id": job_id})
    give_up_stale_uploads(session)
    pending = jobs.reannounce(session, "publish", Job.publish_wake_at, Job.publish_status == "pending")
    for job_id in pending:
        outbox.add(session, "publish", {"job_id": job_id})
    outbox.forget(session)
    return len(queued) + len(pending) + webhook_messages.reannounce(session)


def _lose(session: Session, job: Job) -> None:
    if job.status == "cancelling":
        to_cancelled(session, job, state="lost")
    elif job.status == "pausing":
        to_paused(session, job, state="lost")
    elif job.losses + 1 >= MAX_INFRA_ATTEMPTS:
        to_failed(session, job, failure=_LOST.model_dump(mode="json"), state="lost")
    else:
        to_queue(session, job, state="lost")
