"""Rows of jobs: create, read, page, and the conditional updates that the lifecycle is made of."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, insert, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.errors import BadRequest, NotFound
from api.ids import is_id
from api.store.clock import in_seconds
from api.store.models import ACTIVE, Job, OutboxMessage

REANNOUNCE_seconds = 60
"""How long a queued job may wait for a claim before it is announced again."""


def create(session: Session, **values: Any) -> Job:
    """Insert a queued job."""
    return session.execute(
        insert(Job).values(wake_at=in_seconds(REANNOUNCE_seconds), **values).returning(Job)
    ).scalar_one()


def get(session: Session, owner_id: str, job_id: str, *, lock: bool = False) -> Job:
    """The owner's job. Raises `NotFound`, also for another tenant's."""
    statement = select(Job).where(Job.id == job_id, Job.owner_id == owner_id)
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


def page(
    session: Session, owner_id: str, *, limit: int, after: str | None, statuses: Collection[str] = ()
) -> tuple[Sequence[Job], bool]:
    """Newest first, from below `after`; and whether there are more. Raises `BadRequest` for an unknown cursor."""
    statement = select(Job).where(Job.owner_id == owner_id).order_by(Job.id.desc()).limit(limit + 1)
    if after is not None:
        if not (is_id("job", after) and _exists(session, owner_id, after)):
            raise BadRequest(
                "the cursor is no job of yours", remedy="pass the last_id of the page before", field="after"
            )
        statement = statement.where(Job.id < after)
    if statuses:
        statement = statement.where(Job.status.in_(statuses))
    rows = session.scalars(statement).all()
    return rows[:limit], len(rows) > limit


def _exists(session: Session, owner_id: str, job_id: str) -> bool:
    return bool(session.scalar(select(exists().where(Job.id == job_id, Job.owner_id == owner_id))))


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
