"""How a worker takes a job, and keeps it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import Session

from api.errors import Fenced
from api.lifecycle.announcements import announce
from api.lifecycle.transitions import LEASE_seconds, move
from api.store import attempts, hosts, jobs, projects, queue
from api.store.clock import in_seconds
from api.store.models import Job
from api.store.workers import Capacity


@dataclass(frozen=True)
class Claim:
    """A job held by a worker. All that the worker writes is checked against `epoch`."""

    job_id: str
    epoch: int
    worker_id: str
    attempt: int
    project_id: str
    recipe: dict[str, Any]
    resolved: dict[str, Any] | None
    """The pinned recipe, where an earlier attempt found it: run that one."""
    lease_seconds: float = LEASE_seconds
    request_id: str = ""
    """Of the request that submitted the job."""
    traceparent: str | None = None
    """Its span, where traces are on."""
    waited: tuple[datetime, datetime] | None = None
    """From when to when the job was queued."""

    @property
    def fence(self) -> ColumnElement[bool]:
        """True for the row as long as nobody else claimed it and it is not over."""
        return jobs.owned_by(self.epoch, self.worker_id)


@dataclass(frozen=True)
class Renewal:
    """What a heartbeat brings back."""

    cancel_requested: bool = False
    pause_requested: bool = False
    out_of_time: bool = False
    """The run has used up `limits.max_run_seconds`."""


def claim_next(
    session: Session, worker: Capacity, worker_id: str, lease_seconds: float = LEASE_seconds
) -> Claim | None:
    """Take the queued job that is first in line among those that fit the worker; None when there is none.

    First comes the higher priority, then the project with fewer running jobs, then the longer wait. A project at its
    limit of running jobs is passed over. Nothing is given to a host in quarantine.
    """
    if hosts.in_quarantine(session, worker.host):
        return None
    full: set[str] = set()
    while (job := queue.first_in_line(session, worker, but=full)) is not None:
        project = projects.hold(session, job.project_id)  # two workers must not both take its last place
        if project.max_running is None or queue.count_held(session, project.id) < project.max_running:
            return claim(session, job.id, worker_id, worker, lease_seconds)
        full.add(project.id)
    return None


def claim(
    session: Session,
    job_id: str,
    worker_id: str,
    worker: Capacity | None = None,
    lease_seconds: float = LEASE_seconds,
) -> Claim | None:
    """Take this queued job for a minute; None when it is taken, over or gone."""
    job = move(
        session,
        job_id,
        "running",
        data={"worker_id": worker_id},
        epoch=Job.epoch + 1,
        attempt=Job.attempt + 1,
        worker_id=worker_id,
        lease_until=in_seconds(lease_seconds),
        claimed_at=func.now(),
        started_at=func.coalesce(Job.started_at, func.now()),
    )
    if job is None:
        return None
    attempts.begin(session, job, worker)
    announce(session, job, "job.running")
    return Claim(
        job_id=job_id,
        epoch=job.epoch,
        worker_id=worker_id,
        attempt=job.attempt,
        project_id=job.project_id,
        recipe=job.recipe,
        resolved=job.resolved,
        lease_seconds=lease_seconds,
        request_id=job.request_id,
        traceparent=job.traceparent,
        waited=None if job.claimed_at is None else (job.queued_at, job.claimed_at),
    )


def renew(session: Session, claim: Claim) -> Renewal:
    """Hold the job for another term. Raises `Fenced` when it is not ours any more."""
    job = held(session, claim, lease_until=in_seconds(claim.lease_seconds))
    return Renewal(
        cancel_requested=job.status == "cancelling",
        pause_requested=job.status == "pausing",
        out_of_time=jobs.is_out_of_time(session, job.id),
    )


def held(session: Session, claim: Claim, **values: Any) -> Job:
    """The job, its row locked until the commit, with columns set. Raises `Fenced` when it is not ours any more."""
    job = jobs.touch(session, claim.job_id, claim.fence, **values or {"epoch": claim.epoch})
    if job is None:
        raise Fenced(f"job {claim.job_id} is no longer held by epoch {claim.epoch}", remedy="stop and write nothing")
    return job
