"""What grows for ever unless something is forgotten: history of jobs that are over, and rows that served their turn.

Every call deletes one bounded batch and says how many rows that was, so that no transaction is long.
"""

from typing import Any

from sqlalchemy import ColumnElement, delete, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.store import removals
from api.store.clock import in_seconds
from api.store.models import AuditEntry, IdempotencyKey, Job, LogChunk, MetricPoint, Row, Worker

BATCH = 5000
IDEMPOTENCY_seconds = 24 * 3600
WORKER_seconds = 7 * 24 * 3600
DAY_seconds = 24 * 3600


def forget_details(session: Session, days: int) -> int:
    """Logs and metrics of jobs that ended so long ago."""
    old = select(Job.id).where(Job.finished_at < in_seconds(-days * DAY_seconds))
    chunks = _delete(session, LogChunk, [LogChunk.job_id, LogChunk.seq], LogChunk.job_id.in_(old))
    place = [MetricPoint.job_id, MetricPoint.stage, MetricPoint.name, MetricPoint.step]
    return chunks + _delete(session, MetricPoint, place, MetricPoint.job_id.in_(old))


def forget_jobs(session: Session, days: int, limit: int = 100) -> int:
    """Jobs that ended so long ago, with all that is known of them and their files."""
    unsettled = Job.publish_status.in_(("pending", "uploading"))
    old = select(Job.id).where(Job.finished_at < in_seconds(-days * DAY_seconds), ~unsettled).limit(limit)
    ids = session.scalars(old.with_for_update(skip_locked=True)).all()
    for job_id in ids:
        removals.add(session, job_id)
    session.execute(delete(Job).where(Job.id.in_(ids)).execution_options(synchronize_session=False))
    return len(ids)


def forget_audit(session: Session, days: int) -> int:
    """Entries of the audit log that are so old."""
    return _delete(session, AuditEntry, [AuditEntry.id], AuditEntry.at < in_seconds(-days * DAY_seconds))


def forget_served(session: Session) -> int:
    """Answers to POSTs that nobody will repeat, and workers that are long gone."""
    key = [IdempotencyKey.project_id, IdempotencyKey.route, IdempotencyKey.key]
    answers = _delete(session, IdempotencyKey, key, IdempotencyKey.created_at < in_seconds(-IDEMPOTENCY_seconds))
    return answers + _delete(session, Worker, [Worker.id], Worker.seen_at < in_seconds(-WORKER_seconds))


def _delete(
    session: Session, table: type[Row], key: list[InstrumentedAttribute[Any]], condition: ColumnElement[bool]
) -> int:
    batch = select(*key).where(condition).limit(BATCH)
    statement = delete(table).where(tuple_(*key).in_(batch)).returning(key[0])
    return len(session.scalars(statement.execution_options(synchronize_session=False)).all())
