"""How an attempt ends: with a result, a failure, a cancellation, or handed back."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from api.errors import Fenced
from api.lifecycle.announcements import announce
from api.lifecycle.claims import Claim, held
from api.lifecycle.publishing import begin_publishing
from api.lifecycle.timeouts import ran_too_long
from api.lifecycle.transitions import (
    MAX_INFRA_ATTEMPTS,
    end_attempt,
    move,
    to_cancelled,
    to_failed,
    to_paused,
    to_queue,
)
from api.store import artifacts as files
from api.store import jobs, stages
from api.store.artifacts import ArtifactFile
from api.store.models import Job
from optcore.errors import Failure


def finish(session: Session, claim: Claim, digest: str, artifacts: Sequence[ArtifactFile]) -> None:
    """The job succeeded and its files are in place. Doing it twice is harmless (the first answer may have been lost).

    An expired lease that nobody took over is accepted. Raises `Fenced` when it was.
    """
    job = move(
        session,
        claim.job_id,
        "succeeded",
        claim.fence,
        data={"artifact_digest": digest, "files": len(artifacts)},
        artifact_digest=digest,
    )
    if job is None:
        return _must_be_finished(session, claim, digest)
    files.add(session, claim.job_id, artifacts)
    end_attempt(session, job, "succeeded")
    stages.close(session, claim.job_id, "succeeded")
    if job.publish_to:
        job = begin_publishing(session, job) or job
    announce(session, job, "job.succeeded")


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """The attempt failed. One that may go better next time is queued again, up to three times. Raises `Fenced`."""
    job = held(session, claim)
    data = failure.model_dump(mode="json")
    if not failure.retryable:
        to_failed(session, job, failure=data)
    elif job.status == "cancelling":
        to_cancelled(session, job)
    elif job.status == "pausing":
        to_paused(session, job, state="failed", failure=data)
    elif job.losses + 1 >= MAX_INFRA_ATTEMPTS:
        to_failed(session, job, failure=data)
    else:
        to_queue(session, job, state="failed", failure=data)


def cancelled(session: Session, claim: Claim) -> None:
    """The engine stopped because the owner asked. Raises `Fenced`, also when nobody did."""
    if to_cancelled(session, held(session, claim), Job.status == "cancelling") is None:
        raise Fenced(f"nobody asked to cancel job {claim.job_id}", remedy="release the job instead")


def paused(session: Session, claim: Claim) -> None:
    """The engine stopped because the owner wants the job set aside, or ended since. Raises `Fenced`."""
    release(session, claim)


def out_of_time(session: Session, claim: Claim) -> None:
    """The engine was stopped because the run has used up its time. Raises `Fenced`."""
    job = held(session, claim)
    if job.status == "cancelling":
        to_cancelled(session, job)
    else:
        to_failed(session, job, failure=ran_too_long(job))


def release(session: Session, claim: Claim, failure: Failure | None = None) -> None:
    """Hand the job back because the worker stops or, for a reason, cannot begin; this is no failure of the job.

    Raises `Fenced`.
    """
    job = held(session, claim)
    if job.status == "cancelling":
        to_cancelled(session, job)
    elif job.status == "pausing":
        to_paused(session, job)
    else:
        to_queue(session, job, state="released", failure=failure.model_dump(mode="json") if failure else None)


def _must_be_finished(session: Session, claim: Claim, digest: str) -> None:
    job = jobs.find(session, claim.job_id)
    if job is None or (job.status, job.epoch, job.artifact_digest) != ("succeeded", claim.epoch, digest):
        raise Fenced(f"job {claim.job_id} is no longer held by epoch {claim.epoch}", remedy="stop and write nothing")
