"""How a worker takes a job, and keeps it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from api.errors import Fenced
from api.lifecycle.transitions import LEASE_seconds, move
from api.store import attempts, jobs
from api.store.clock import in_seconds
from api.store.models import Job


@dataclass(frozen=True)
class Claim:
    """A job held by a worker. All that the worker writes is checked against `epoch`."""

    job_id: str
    epoch: int
    worker_id: str
    attempt: int
    owner_id: str
    recipe: dict[str, Any]
    resolved: dict[str, Any] | None
    """The pinned recipe, where an earlier attempt found it: run that one."""

    @property
    def fence(self) -> ColumnElement[bool]:
        """True for the row as long as nobody else claimed it and it is not over."""
        return jobs.owned_by(self.epoch, self.worker_id)


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat brings back."""

    cancel_requested: bool


def claim(session: Session, job_id: str, worker_id: str) -> Claim | None:
    """Take a queued job for 60 s; None when it is taken, over or gone: a late or doubled message."""
    job = move(
        session,
        job_id,
        "running",
        Job.cancel_requested_at.is_(None),
        data={"worker_id": worker_id},
        epoch=Job.epoch + 1,
        attempt=Job.attempt + 1,
        worker_id=worker_id,
        lease_until=in_seconds(LEASE_seconds),
        started_at=func.coalesce(Job.started_at, func.now()),
    )
    if job is None:
        return None
    attempts.begin(session, job_id, job.epoch, worker_id)
    return Claim(job_id, job.epoch, worker_id, job.attempt, job.owner_id, job.recipe, job.resolved)


def renew(session: Session, claim: Claim) -> Renewal:
    """Hold the job for another 60 s. Raises `Fenced` when it is not ours any more."""
    job = held(session, claim, lease_until=in_seconds(LEASE_seconds))
    return Renewal(cancel_requested=job.status == "cancelling")


def held(session: Session, claim: Claim, **values: Any) -> Job:
    """The job, its row locked until the commit, with columns set. Raises `Fenced` when it is not ours any more."""
    job = jobs.touch(session, claim.job_id, claim.fence, **values or {"epoch": claim.epoch})
    if job is None:
        raise Fenced(f"job {claim.job_id} is no longer held by epoch {claim.epoch}", remedy="stop and write nothing")
    return job
