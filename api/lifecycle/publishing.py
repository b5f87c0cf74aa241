"""The push to the Hub: a life of its own after the job's, so that an upload error never costs a finished run.

A project pushes to one repository once at a time: a push whose turn it is not stays pending, and has not been tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, or_, true
from sqlalchemy.orm import Session

from api.errors import Conflict, Fenced
from api.lifecycle.announcements import announce
from api.lifecycle.transitions import move_publish
from api.store import jobs, outbox, pushes
from api.store.clock import in_seconds
from api.store.models import Job
from optcore.errors import Failure

PUBLISH_LEASE_seconds = 600
MAX_PUBLISH_ATTEMPTS = 5
RETRY_AFTER_LIMIT_seconds = 3600
"""The longest wait that the Hub may ask for between two tries."""
_LOST = Failure(
    kind="infrastructure",
    code="publisher_lost",
    message="the worker was lost in every push",
    remedy="look at the worker's log and memory, then publish again",
)


@dataclass(frozen=True)
class PublishClaim:
    """A push held by a worker."""

    job_id: str
    epoch: int
    """Of the publishing."""
    worker_id: str
    attempt: int
    project_id: str
    publish_to: dict[str, Any]
    pull_requests: dict[str, int]
    """Those that earlier tries opened, by `repository@branch`."""
    artifact_epoch: int
    """The files lie in `artifacts/<job_id>/<artifact_epoch>/`."""
    artifact_digest: str
    request_id: str = ""
    """Of the request that submitted the job."""
    traceparent: str | None = None
    """Its span, where traces are on."""

    @property
    def fence(self) -> ColumnElement[bool]:
        """True for the row as long as nobody else took the push over."""
        return (Job.publish_epoch == self.epoch) & (Job.publish_worker_id == self.worker_id)


def begin_publishing(session: Session, job: Job) -> Job | None:
    """Have a finished artifact pushed to `publish_to`; None where it is being pushed, or was.

    A push that was given up fits no more, for it may have gone elsewhere.
    """
    due = {"publish_wake_at": in_seconds(jobs.REANNOUNCE_seconds), "publish_failure": None, "publish_attempt": 0}
    begun = move_publish(session, job.id, "pending", data={}, publish_worker_id=None, **due)
    if begun is not None:
        outbox.add(session, "publish", {"job_id": job.id})
    return begun


def request_publish(session: Session, project_id: str, job_id: str, where: dict[str, Any] | None) -> Job:
    """Push a finished job to `where`, or once more to where a push failed. One that is under way stays as it is.

    Raises `NotFound`, and `Conflict` when there is nothing to push, nowhere to, or it was pushed before.
    """
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status != "succeeded":
        raise Conflict(f"the job is {job.status}", remedy="only the result of a job that succeeded can be published")
    if job.publish_status == "published":
        raise Conflict(f"it is published at {job.publish_url}", remedy="submit the recipe again to publish elsewhere")
    if job.publish_status in {"pending", "uploading"}:
        return job
    if where is None and job.publish_to is None:
        raise Conflict("the recipe does not say where to publish", remedy='send {"repo_id": "you/model"}')
    jobs.touch(session, job.id, true(), publish_to=where or job.publish_to, publish_pull_requests={})
    return begin_publishing(session, job) or job


def claim_publish(session: Session, job_id: str, worker_id: str) -> PublishClaim | None:
    """Take a pending push for 10 minutes, or one whose worker was lost; None when nothing is to be done, or not yet."""
    if not pushes.may_begin(session, job_id):
        return None
    job = move_publish(
        session,
        job_id,
        "uploading",
        or_(Job.publish_status == "pending", Job.publish_wake_at < in_seconds(0)),
        data={"worker_id": worker_id},
        publish_epoch=Job.publish_epoch + 1,
        publish_attempt=Job.publish_attempt + 1,
        publish_worker_id=worker_id,
        publish_wake_at=in_seconds(PUBLISH_LEASE_seconds),
        publish_failure=None,
    )
    if job is None:
        return None
    assert job.artifact_digest is not None
    assert job.publish_to is not None
    return PublishClaim(
        job_id,
        job.publish_epoch,
        worker_id,
        job.publish_attempt,
        job.project_id,
        job.publish_to,
        job.publish_pull_requests,
        job.epoch,
        job.artifact_digest,
        job.request_id,
        job.traceparent,
    )


def renew_publish(session: Session, claim: PublishClaim) -> None:
    """Hold the push for another 10 minutes. Raises `Fenced`."""
    fence = claim.fence & (Job.publish_status == "uploading")
    if jobs.touch(session, claim.job_id, fence, publish_wake_at=in_seconds(PUBLISH_LEASE_seconds)) is None:
        raise _fenced(claim)


def note_pull_requests(session: Session, claim: PublishClaim, numbers: Mapping[str, int]) -> None:
    """Remember the pull requests that the push goes through. Raises `Fenced`."""
    fence = claim.fence & (Job.publish_status == "uploading")
    if jobs.touch(session, claim.job_id, fence, publish_pull_requests=dict(numbers)) is None:
        raise _fenced(claim)


def publish_succeeded(session: Session, claim: PublishClaim, url: str, commit: str) -> None:
    """The artifact is on the Hub at a commit. Raises `Fenced`."""
    done = {"publish_url": url, "publish_commit": commit, "publish_wake_at": None}
    data = {"url": url, "commit": commit}
    job = move_publish(session, claim.job_id, "published", claim.fence, data=data, **done)
    if job is None:
        raise _fenced(claim)
    announce(session, job, "publish.succeeded")


def publish_failed(session: Session, claim: PublishClaim, failure: Failure, *, retry_after_seconds: float = 0) -> None:
    """The push failed; one that may go better is tried again, five times, from 30 s on doubling. Raises `Fenced`.

    That ends the claim: what it says afterwards is refused. The Hub may have asked for a longer wait, and gets it, up
    to an hour.
    """
    data = failure.model_dump(mode="json")
    again = failure.retryable and claim.attempt < MAX_PUBLISH_ATTEMPTS
    delay_seconds = max(30 * 2 ** (claim.attempt - 1), min(retry_after_seconds, RETRY_AFTER_LIMIT_seconds))
    wake_at = in_seconds(delay_seconds + jobs.REANNOUNCE_seconds) if again else None
    values = {"publish_failure": data, "publish_wake_at": wake_at, "publish_worker_id": None}
    job = move_publish(
        session, claim.job_id, "pending" if again else "failed", claim.fence, data={"failure": data}, **values
    )
    if job is None:
        raise _fenced(claim)
    if again:
        outbox.add(session, "publish", {"job_id": claim.job_id}, delay_seconds=delay_seconds)
    else:
        announce(session, job, "publish.failed")


def give_up_stale_uploads(session: Session) -> None:
    """Pushes whose worker was lost become pending, still due, so that they are announced again; five times at most."""
    overdue = Job.publish_wake_at < in_seconds(0)
    for job_id in jobs.with_stale_upload(session):
        tried_often = overdue & (Job.publish_attempt >= MAX_PUBLISH_ATTEMPTS)
        lost = _LOST.model_dump(mode="json")
        values = {"publish_failure": lost, "publish_wake_at": None}
        job = move_publish(session, job_id, "failed", tried_often, data={"failure": lost}, **values)
        if job:
            announce(session, job, "publish.failed")
        else:
            move_publish(session, job_id, "pending", overdue, data={"reason": "lost"})


def _fenced(claim: PublishClaim) -> Fenced:
    return Fenced(f"the push of job {claim.job_id} was taken over", remedy="stop and write nothing")
