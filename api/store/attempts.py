"""Rows of attempts: which worker held a job, where, when, and how it ended."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from api.store.models import Attempt, Job
from api.store.workers import Capacity


def begin(session: Session, job: Job, worker: Capacity | None) -> None:
    """A worker claimed the job."""
    names = ("host", "gpus", "device", "gpu_kind")
    where = {name: getattr(worker, name) for name in names} if worker else {}
    values = {"job_id": job.id, "epoch": job.epoch, "run_number": job.run_number, "worker_id": job.worker_id}
    session.execute(insert(Attempt).values(**values, **where))


def end(session: Session, job_id: str, epoch: int, state: str, failure: dict[str, Any] | None = None) -> str | None:
    """The claim is over; the host that it was on."""
    return session.scalar(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.epoch == epoch, Attempt.state == "running")
        .values(state=state, failure=failure, finished_at=func.now())
        .returning(Attempt.host)
        .execution_options(synchronize_session=False)
    )


class Spent(NamedTuple):
    """Time that a job had on one kind of machine."""

    device: str | None
    gpu_kind: str | None
    gpus: int
    seconds: float


def spent(session: Session, job_id: str) -> list[Spent]:
    """By all attempts of a job so far, of every run, whatever became of them."""
    seconds = func.sum(func.extract("epoch", func.coalesce(Attempt.finished_at, func.now()) - Attempt.started_at))
    machine = (Attempt.device, Attempt.gpu_kind, Attempt.gpus)
    statement = select(*machine, seconds).where(Attempt.job_id == job_id).group_by(*machine)
    found = session.execute(statement)
    return [Spent(device, kind, gpus, float(seconds)) for device, kind, gpus, seconds in found]


def of(session: Session, job_id: str) -> Sequence[Attempt]:
    """The attempts of a job, in order."""
    return session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch)).all()
