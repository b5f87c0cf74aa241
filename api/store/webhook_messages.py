"""Webhook messages: one payload for one receiver, on its way until it is delivered or given up."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, any_, delete, func, insert, literal, select, update
from sqlalchemy.orm import Session

from api.errors import NotFound
from api.ids import is_id, new_id
from api.store import outbox
from api.store.clock import in_seconds
from api.store.models import WebhookEndpoint, WebhookMessage

TOPIC = "deliver_webhook"
REANNOUNCE_seconds = 300
"""How long a message that is due may wait for a worker before it is announced again."""
BATCH = 1000
FORGET = 5000
DAY_seconds = 24 * 3600


def receivers(session: Session, project_id: str, type: str) -> Sequence[str]:
    """Ids of the project's receivers that want messages of that type.

    They are held until the commit: one that is removed meanwhile must not cost the end of a job.
    """
    statement = select(WebhookEndpoint.id).where(
        WebhookEndpoint.project_id == project_id,
        WebhookEndpoint.disabled_at.is_(None),
        literal(type) == any_(WebhookEndpoint.events),
    )
    return session.scalars(statement.with_for_update(read=True, key_share=True)).all()


def add(session: Session, endpoint_id: str, type: str, payload: dict[str, Any], job_id: str | None) -> WebhookMessage:
    """One message, and its announcement."""
    values = {"id": new_id("msg"), "endpoint_id": endpoint_id, "job_id": job_id, "type": type, "payload": payload}
    statement = insert(WebhookMessage).values(wake_at=in_seconds(REANNOUNCE_seconds), **values)
    row = session.scalars(statement.returning(WebhookMessage)).one()
    outbox.add(session, TOPIC, {"message_id": row.id})
    return row


def get(session: Session, project_id: str, message_id: str) -> WebhookMessage:
    """The project's message. Raises `NotFound`, also for another tenant's."""
    mine = WebhookMessage.endpoint_id == WebhookEndpoint.id, WebhookEndpoint.project_id == project_id
    statement = select(WebhookMessage).join(WebhookEndpoint, mine[0]).where(mine[1], WebhookMessage.id == message_id)
    fresh = statement.execution_options(populate_existing=True)
    row = session.scalars(fresh).one_or_none() if is_id("msg", message_id) else None
    if row is None:
        raise NotFound("no such webhook message", remedy="list them with GET /v1/webhook_endpoints/{id}/deliveries")
    return row


def in_range(
    endpoint_id: str, statuses: Collection[str], since: datetime, until: datetime | None
) -> tuple[ColumnElement[bool], ...]:
    """The messages to one receiver made from `since` on and before `until`, in one of the statuses."""
    conditions = (
        WebhookMessage.endpoint_id == endpoint_id,
        WebhookMessage.status.in_(statuses),
        WebhookMessage.created_at >= since,
    )
    return (*conditions, WebhookMessage.created_at < until) if until else conditions


def count(session: Session, *conditions: ColumnElement[bool], limit: int) -> int:
    """How many messages meet the conditions; counted no further than `limit`."""
    some = select(WebhookMessage.id).where(*conditions).limit(limit).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def send_again(session: Session, *conditions: ColumnElement[bool]) -> Sequence[str]:
    """Send these messages now, whatever became of them, and with all the delays before them: their ids, oldest first.

    The receiver's row must be locked before.
    """
    anew = {"status": "pending", "earlier_attempts": WebhookMessage.attempts, "asked_at": func.now()}
    statement = update(WebhookMessage).where(*conditions).values(wake_at=in_seconds(REANNOUNCE_seconds), **anew)
    ids = session.scalars(statement.returning(WebhookMessage.id).execution_options(synchronize_session=False)).all()
    outbox.add_all(session, TOPIC, [{"message_id": message_id} for message_id in sorted(ids)])
    return sorted(ids)


def reannounce(session: Session) -> int:
    """Announce pending messages that were announced long ago and not sent: how many."""
    due = select(WebhookMessage.id).where(WebhookMessage.status == "pending", WebhookMessage.wake_at < in_seconds(0))
    statement = (
        update(WebhookMessage)
        .where(WebhookMessage.id.in_(due.limit(BATCH).with_for_update(skip_locked=True)))
        .values(wake_at=in_seconds(REANNOUNCE_seconds))
        .returning(WebhookMessage.id)
    )
    ids = session.scalars(statement.execution_options(synchronize_session=False)).all()
    outbox.add_all(session, TOPIC, [{"message_id": message_id} for message_id in ids])
    return len(ids)


def forget(session: Session, days: int) -> int:
    """Delete messages that are not on their way any more and so old, with their attempts: how many."""
    over = WebhookMessage.status != "pending", WebhookMessage.created_at < in_seconds(-days * DAY_seconds)
    old = select(WebhookMessage.id).where(*over).order_by(WebhookMessage.created_at).limit(FORGET)
    statement = delete(WebhookMessage).where(WebhookMessage.id.in_(old.with_for_update(skip_locked=True)))
    deleted = statement.returning(WebhookMessage.id).execution_options(synchronize_session=False)
    return len(session.scalars(deleted).all())
