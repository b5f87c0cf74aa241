"""The history of a job: numbered lines without gaps."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from api.store.models import Event

CHANNEL = "job_events"
"""LISTEN here; the payload is the id of the job that has news."""


def append(session: Session, job_id: str, last_seq: int, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Store `(type, data)` lines whose numbers end at `last_seq`, which the caller took under the job row's lock."""
    if not lines:
        return
    first = last_seq - len(lines) + 1
    rows = [{"job_id": job_id, "seq": first + i, "type": type, "data": data} for i, (type, data) in enumerate(lines)]
    session.execute(insert(Event), rows)
    session.execute(select(func.pg_notify(CHANNEL, job_id)))


def after(session: Session, job_id: str, seq: int, limit: int) -> Sequence[Event]:
    """Lines above `seq`, oldest first."""
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    ).all()


def of_types(session: Session, job_id: str, types: Collection[str], limit: int) -> Sequence[Event]:
    """The latest lines of these types, oldest first."""
    statement = select(Event).where(Event.job_id == job_id, Event.type.in_(types))
    return session.scalars(statement.order_by(Event.seq.desc()).limit(limit)).all()[::-1]
