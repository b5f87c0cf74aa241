"""Attempts to deliver webhook messages: how one begins, and what becomes of its message."""

import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.orm import Session

from api.store import clock, outbox, webhooks
from api.store.clock import in_seconds
from api.store.models import Job, WebhookDelivery, WebhookEndpoint, WebhookMessage
from api.store.webhook_messages import TOPIC, REANNOUNCE_seconds
from api.vault import Vault

SENDING_seconds = 60
"""Longer than one attempt takes; no second one begins meanwhile."""
PATIENCE_seconds = 5 * 24 * 3600
"""A message that is older is sent although its receiver asked for a pause, so that it ends some day."""

_IS_DUE = WebhookMessage.wake_at <= in_seconds(REANNOUNCE_seconds)
_IS_YOUNG = WebhookMessage.asked_at > in_seconds(-PATIENCE_seconds)
_HOLD_seconds = func.coalesce(func.extract("epoch", WebhookEndpoint.held_until - func.now()), 0)
_TRACEPARENT = select(Job.traceparent).where(Job.id == WebhookMessage.job_id).scalar_subquery()
_PREVIOUS_SIGNS = func.coalesce(WebhookEndpoint.previous_secret_until > func.now(), False)


@dataclass(frozen=True)
class Outgoing:
    """A message that is due, with what is needed to sign and send it."""

    message_id: str
    endpoint_id: str
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    """`whsec_...`; two for a while after a rotation, the new one first."""
    payload: dict[str, Any]
    attempt: int
    """1 for the first."""
    tries: int
    """The same, counted from when its owner last asked for it."""
    job_id: str | None
    traceparent: str | None
    """Of the request that submitted the job, where traces are on."""
    at: datetime
    """The database's clock: a worker whose own is wrong still signs what receivers accept."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    delivered: bool
    seconds: float
    status_code: int | None = None
    error: str | None = None
    retry_in_seconds: float | None = None
    """Absent when the message was delivered, or is given up."""
    hold_seconds: float = 0.0
    """Leave the receiver alone for so long."""
    gone: bool = False
    """The receiver says that it will never come back."""


def begin(session: Session, vault: Vault, message_id: str) -> Outgoing | None:
    """Count an attempt; None when the message is not due, delivered, given up, held back, or its receiver is gone."""
    due = WebhookMessage.id == message_id, WebhookMessage.status == "pending", _IS_DUE
    held_back = (_HOLD_seconds > 0) & _IS_YOUNG
    statement = (
        select(WebhookMessage, WebhookEndpoint, held_back, _HOLD_seconds, _PREVIOUS_SIGNS, _TRACEPARENT)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookMessage.endpoint_id)
        .where(*due)
        .with_for_update(of=WebhookMessage)
        .execution_options(populate_existing=True)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    message, endpoint, is_held_back, hold_seconds, previous_signs, traceparent = row
    if endpoint.disabled_at is not None:
        _change(session, message_id, status="failed")
        return None
    if is_held_back:
        # Spread over some time: what was held back must not come all at once.
        _announce(session, message_id, float(hold_seconds) * random.uniform(1, 1.2))  # noqa: S311 - guards nothing
        return None
    attempt = message.attempts + 1
    _change(session, message_id, attempts=attempt, wake_at=in_seconds(REANNOUNCE_seconds + SENDING_seconds))
    sealed = endpoint.sealed_secret, endpoint.previous_sealed_secret if previous_signs else None
    return Outgoing(
        message_id=message_id,
        endpoint_id=endpoint.id,
        url=endpoint.url,
        secrets=tuple(vault.open(each, endpoint.id) for each in sealed if each),
        payload=message.payload,
        attempt=attempt,
        tries=attempt - message.earlier_attempts,
        job_id=message.job_id,
        traceparent=traceparent,
        at=clock.now(session),
    )


def end(session: Session, outgoing: Outgoing, outcome: Outcome, dead_limit: int) -> None:
    """Log the attempt; the message is delivered, announced again after its delay, or given up.

    The receiver is disabled when it is gone, or when that many messages in a row were given up. Nothing is written when
    receiver or message were removed meanwhile. Of two attempts at once, only the later one's failure counts.
    """
    endpoint, message = _locked(session, outgoing)
    if endpoint is None or message is None:
        return
    _log(session, outgoing, outcome)
    if outcome.delivered:
        _change(session, message.id, status="delivered")
        if endpoint.dead_messages:
            webhooks.change_endpoint(session, endpoint.id, dead_messages=0)
        return
    if outcome.hold_seconds:
        webhooks.change_endpoint(session, endpoint.id, held_until=in_seconds(outcome.hold_seconds))
    if message.status == "pending" and message.attempts == outgoing.attempt:
        if outcome.retry_in_seconds is not None:
            _announce(session, message.id, outcome.retry_in_seconds)
        else:
            _give_up(session, endpoint, message, outcome, dead_limit)


def _locked(session: Session, outgoing: Outgoing) -> tuple[WebhookEndpoint | None, WebhookMessage | None]:
    """Receiver first, as its removal does: the other order is a deadlock."""
    how = {"key_share": True}
    endpoint = session.get(WebhookEndpoint, outgoing.endpoint_id, with_for_update=how, populate_existing=True)
    return endpoint, session.get(WebhookMessage, outgoing.message_id, with_for_update=how, populate_existing=True)


def _log(session: Session, outgoing: Outgoing, outcome: Outcome) -> None:
    statement = insert(WebhookDelivery).values(
        message_id=outgoing.message_id,
        attempt=outgoing.attempt,
        endpoint_id=outgoing.endpoint_id,
        status_code=outcome.status_code,
        error=outcome.error,
        seconds=outcome.seconds,
    )
    session.execute(statement)


def _give_up(
    session: Session, endpoint: WebhookEndpoint, message: WebhookMessage, outcome: Outcome, dead_limit: int
) -> None:
    _change(session, message.id, status="failed")
    dead = endpoint.dead_messages + 1
    webhooks.change_endpoint(session, endpoint.id, dead_messages=dead)
    if outcome.gone or dead >= dead_limit:
        webhooks.disable_endpoint(session, endpoint.id, "gone" if outcome.gone else "undelivered")


def _announce(session: Session, message_id: str, delay_seconds: float) -> None:
    _change(session, message_id, wake_at=in_seconds(delay_seconds + REANNOUNCE_seconds))
    outbox.add(session, TOPIC, {"message_id": message_id}, delay_seconds=delay_seconds)


def _change(session: Session, message_id: str, **values: str | int | ColumnElement[datetime]) -> None:
    statement = update(WebhookMessage).where(WebhookMessage.id == message_id).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))
