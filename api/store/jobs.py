"""Rows of jobs: read, page, and the conditional updates that the lifecycle is made of."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.errors import NotFound
from api.ids import is_id
from api.store.clock import in_seconds
from api.store.models import ACTIVE, Job, OutboxMessage

REANNOUNCE_seconds = 60
"""How long a queued job may wait for a claim before it is announced again."""


def get(session: Session, project_id: str, job_id: str, *, lock: bool = False) -> Job:
    """The project's job. Raises `NotFound`, also for another tenant's."""
    statement = select(Job).where(Job.id == job_id, Job.project_id == project_id)
    if lock:
        statement = statement.with_for_update()
    fresh = statement.execution_options(populate_existing=True)
    job = session.scalars(fresh).one_or_none() if is_id("job", job_id) else None
    if job is None:
        raise NotFound(f"no job {job_id[:64]!r}", remedy="list your jobs with GET /v1/jobs")
    return job


def find(session: Session, job_id: str) -> Job | None:
    """The job whoever owns it, fresh from the database; for workers."""
    return session.get(Job, job_id, populate_existing=True)


_RUN_IS_OVER = Job.run_seconds + func.extract("epoch", func.now() - Job.claimed_at) > Job.max_run_seconds
_WAIT_IS_OVER = func.extract("epoch", func.now() - Job.queued_at) > Job.max_queue_seconds


def is_out_of_time(session: Session, job_id: str) -> bool:
    """Whether a held job has used up the time that it may run."""
    return bool(session.scalar(select(_RUN_IS_OVER).where(Job.id == job_id, Job.max_run_seconds.is_not(None))))


def with_deadline_passed(session: Session, grace_seconds: float) -> Sequence[Job]:
    """Queued jobs that waited too long, and held ones whose worker let them run too long; locked."""
    waited = and_(Job.status == "queued", Job.max_queue_seconds.is_not(None), _WAIT_IS_OVER)
    late = Job.run_seconds + func.extract("epoch", func.now() - Job.claimed_at) - grace_seconds > Job.max_run_seconds
    ran = and_(Job.status.in_(ACTIVE), Job.max_run_seconds.is_not(None), late)
    statement = select(Job).where(or_(waited, ran)).limit(100).with_for_update(skip_locked=True)
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def remove(session: Session, job_id: str) -> None:
    """Delete a job and all that is known of it."""
    session.execute(delete(Job).where(Job.id == job_id).execution_options(synchronize_session=False))


def change(session: Session, job_id: str, *conditions: ColumnElement[bool], **values: Any) -> Job | None:
    """Compare and set: one UPDATE that also takes the next event number; None when a condition did not hold."""
    statement = (
        update(Job)
        .where(Job.id == job_id, *conditions)
        .values(last_seq=Job.last_seq + 1, **values)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def owned_by(epoch: int, worker_id: str) -> ColumnElement[bool]:
    """The fence: the job is still held by this claim."""
    return (Job.epoch == epoch) & (Job.worker_id == worker_id) & Job.status.in_(ACTIVE)


def touch(session: Session, job_id: str, fence: ColumnElement[bool], **values: Any) -> Job | None:
    """Set columns of a held job without an event; None when fenced. Locks the row until the commit."""
    statement = (
        update(Job)
        .where(Job.id == job_id, fence)
        .values(**values)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def with_expired_lease(session: Session, limit: int = 100) -> Sequence[Job]:
    """Held jobs whose lease is over, locked; rows that another reconciler holds are left to it."""
    statement = (
        select(Job)
        .where(Job.lease_until < in_seconds(0), Job.status.in_(ACTIVE))
        .order_by(Job.lease_until)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def reannounce(
    session: Session, topic: str, wake_at: InstrumentedAttribute[Any], condition: ColumnElement[bool], **values: Any
) -> Sequence[str]:
    """Ids of jobs whose announcement is overdue and not waiting in the outbox; taken as announced now."""
    waiting = exists().where(
        OutboxMessage.topic == topic,
        OutboxMessage.published_at.is_(None),
        OutboxMessage.payload["job_id"].astext == Job.id,
    )
    due = select(Job.id).where(wake_at < in_seconds(0), condition, ~waiting).limit(1000)
    statement = (
        update(Job)
        .where(Job.id.in_(due.with_for_update(skip_locked=True)))
        .values({wake_at: in_seconds(REANNOUNCE_seconds), **values})
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).all()


def with_stale_upload(session: Session) -> Sequence[str]:
    """Ids of jobs whose push was begun and not heard of since, locked."""
    statement = select(Job.id).where(Job.publish_status == "uploading", Job.publish_wake_at < in_seconds(0))
    return session.scalars(statement.limit(100).with_for_update(skip_locked=True)).all()
