"""Webhook receivers, the messages meant for them, and the attempts to deliver those."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import any_, delete, func, insert, literal, select, update
from sqlalchemy.orm import Session

from api.ids import is_id, new_id
from api.store import outbox
from api.store.clock import in_seconds
from api.store.models import WebhookDelivery, WebhookEndpoint, WebhookMessage
from api.vault import Vault

TOPIC = "deliver_webhook"
REANNOUNCE_seconds = 300
SENDING_seconds = 60
"""Longer than one attempt takes; no second one begins meanwhile."""

_IS_DUE = WebhookMessage.wake_at <= in_seconds(REANNOUNCE_seconds)


@dataclass(frozen=True)
class Outgoing:
    """A message that is due, with what is needed to sign and send it."""

    message_id: str
    endpoint_id: str
    url: str
    secret: str
    """`whsec_...`."""
    payload: dict[str, Any]
    attempt: int
    """1 for the first."""


def create_endpoint(
    session: Session, vault: Vault, project_id: str, url: str, events: Sequence[str]
) -> tuple[WebhookEndpoint, str]:
    """Add a receiver: its row, and the secret that is shown once."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    endpoint_id = new_id("whe")
    values = {"id": endpoint_id, "project_id": project_id, "url": url, "events": list(dict.fromkeys(events))}
    sealed = vault.seal(secret, endpoint_id)
    statement = insert(WebhookEndpoint).values(sealed_secret=sealed, **values).returning(WebhookEndpoint)
    return session.scalars(statement).one(), secret


def endpoints(session: Session, project_id: str) -> Sequence[WebhookEndpoint]:
    """The project's receivers, newest first."""
    statement = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return session.scalars(statement.order_by(WebhookEndpoint.id.desc())).all()


def remove_endpoint(session: Session, project_id: str, endpoint_id: str) -> bool:
    """Forget a receiver and its messages; False when there is none."""
    if not is_id("whe", endpoint_id):
        return False
    statement = delete(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id
    )
    return session.execute(statement.returning(WebhookEndpoint.id)).first() is not None


def enqueue(session: Session, project_id: str, job_id: str, type: str, payload: dict[str, Any]) -> None:
    """One message for each of the project's receivers of that type, and its announcement."""
    statement = select(WebhookEndpoint.id).where(
        WebhookEndpoint.project_id == project_id,
        WebhookEndpoint.disabled_at.is_(None),
        literal(type) == any_(WebhookEndpoint.events),
    )
    # Held until the commit: a receiver removed meanwhile must not cost the end of a job.
    statement = statement.with_for_update(read=True, key_share=True)
    for endpoint_id in session.scalars(statement).all():
        message = {"id": new_id("msg"), "endpoint_id": endpoint_id, "job_id": job_id, "type": type, "payload": payload}
        session.execute(insert(WebhookMessage).values(wake_at=in_seconds(REANNOUNCE_seconds), **message))
        outbox.add(session, TOPIC, {"message_id": message["id"]})


def begin_delivery(session: Session, vault: Vault, message_id: str) -> Outgoing | None:
    """Count an attempt; None when the message is not due, delivered, given up, or its receiver is gone."""
    statement = (
        update(WebhookMessage)
        .where(WebhookMessage.id == message_id, WebhookMessage.status == "pending", _IS_DUE)
        .values(attempts=WebhookMessage.attempts + 1, wake_at=in_seconds(REANNOUNCE_seconds + SENDING_seconds))
        .returning(WebhookMessage)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    message = session.scalars(statement).one_or_none()
    if message is None:
        return None
    endpoint = session.get_one(WebhookEndpoint, message.endpoint_id, populate_existing=True)
    if endpoint.disabled_at is not None:
        _close(session, message_id, "failed")
        return None
    secret = vault.open(endpoint.sealed_secret, endpoint.id)
    return Outgoing(message.id, endpoint.id, endpoint.url, secret, message.payload, message.attempts)


def end_delivery(
    session: Session,
    outgoing: Outgoing,
    *,
    delivered: bool,
    seconds: float,
    status_code: int | None = None,
    error: str | None = None,
    retry_in_seconds: float | None = None,
) -> None:
    """Log the attempt; then the message is delivered, announced again after the delay, or given up (no delay)."""
    attempt = {"attempt": outgoing.attempt, "status_code": status_code, "error": error, "seconds": seconds}
    session.execute(insert(WebhookDelivery).values(message_id=outgoing.message_id, **attempt))
    if delivered or retry_in_seconds is None:
        return _close(session, outgoing.message_id, "delivered" if delivered else "failed")
    wake_at = in_seconds(retry_in_seconds + REANNOUNCE_seconds)
    session.execute(update(WebhookMessage).where(WebhookMessage.id == outgoing.message_id).values(wake_at=wake_at))
    outbox.add(session, TOPIC, {"message_id": outgoing.message_id}, delay_seconds=retry_in_seconds)


def disable_endpoint(session: Session, endpoint_id: str) -> None:
    """Send nothing more there: the receiver answered 410, or never answered."""
    session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(disabled_at=func.now()))


def reannounce(session: Session) -> int:
    """Announce pending messages that were announced long ago and not sent: how many."""
    due = select(WebhookMessage.id).where(WebhookMessage.status == "pending", WebhookMessage.wake_at < in_seconds(0))
    statement = (
        update(WebhookMessage)
        .where(WebhookMessage.id.in_(due.limit(1000).with_for_update(skip_locked=True)))
        .values(wake_at=in_seconds(REANNOUNCE_seconds))
        .returning(WebhookMessage.id)
    )
    ids = session.scalars(statement.execution_options(synchronize_session=False)).all()
    for message_id in ids:
        outbox.add(session, TOPIC, {"message_id": message_id})
    return len(ids)


def _close(session: Session, message_id: str, status: str) -> None:
    session.execute(update(WebhookMessage).where(WebhookMessage.id == message_id).values(status=status))
