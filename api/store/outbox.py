"""The outbox: what the relay tells the broker after the commit that caused it."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from api.store.clock import in_seconds
from api.store.models import OutboxMessage

CHANNEL = "outbox"
"""LISTEN here to be woken by an insert."""
RETENTION_seconds = 24 * 3600


def add(session: Session, topic: str, payload: dict[str, Any], *, delay_seconds: float = 0) -> None:
    """Announce `payload` (ids only) on `topic` once this transaction is committed, not before the delay is over."""
    session.execute(insert(OutboxMessage).values(topic=topic, payload=payload, available_at=in_seconds(delay_seconds)))
    session.execute(select(func.pg_notify(CHANNEL, "")))


def add_all(session: Session, topic: str, payloads: Sequence[dict[str, Any]]) -> None:
    """Announce many at once, in their order."""
    if payloads:
        session.execute(insert(OutboxMessage), [{"topic": topic, "payload": payload} for payload in payloads])
        session.execute(select(func.pg_notify(CHANNEL, "")))


def take(session: Session, limit: int = 100) -> Sequence[OutboxMessage]:
    """Due messages, oldest first, locked until the commit; rows that another relay holds are skipped."""
    statement = (
        select(OutboxMessage)
        .where(OutboxMessage.published_at.is_(None), OutboxMessage.available_at <= in_seconds(0))
        .order_by(OutboxMessage.available_at, OutboxMessage.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(statement).all()


def mark_published(session: Session, ids: Collection[int]) -> None:
    """The broker has these."""
    session.execute(
        update(OutboxMessage)
        .where(OutboxMessage.id.in_(ids))
        .values(published_at=func.now())
        .execution_options(synchronize_session=False)
    )


def forget(session: Session) -> None:
    """Delete what was published more than a day ago."""
    old = select(OutboxMessage.id).where(OutboxMessage.published_at < in_seconds(-RETENTION_seconds)).limit(1000)
    session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_(old)).execution_options(synchronize_session=False))
