"""Rows of attempts: which worker held a job, when, and how it ended."""

from typing import Any

from sqlalchemy import func, insert, update
from sqlalchemy.orm import Session

from api.store.models import Attempt


def begin(session: Session, job_id: str, epoch: int, worker_id: str) -> None:
    """A worker claimed the job."""
    session.execute(insert(Attempt).values(job_id=job_id, epoch=epoch, worker_id=worker_id))


def end(session: Session, job_id: str, epoch: int, state: str, failure: dict[str, Any] | None = None) -> None:
    """The claim is over."""
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.epoch == epoch, Attempt.state == "running")
        .values(state=state, failure=failure, finished_at=func.now())
        .execution_options(synchronize_session=False)
    )
