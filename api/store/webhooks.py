"""Webhook receivers: where a project's messages go, what signs them, and whether any are sent."""

import base64
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from api.errors import BadRequest, NotFound
from api.ids import is_id, new_id
from api.store.clock import in_seconds
from api.store.models import WebhookEndpoint
from api.vault import Vault


def create_endpoint(
    session: Session, vault: Vault, project_id: str, url: str, events: Sequence[str], description: str = ""
) -> tuple[WebhookEndpoint, str]:
    """Add a receiver: its row, and the secret that is shown once."""
    secret, endpoint_id = _new_secret(), new_id("whe")
    statement = insert(WebhookEndpoint).values(
        id=endpoint_id,
        project_id=project_id,
        url=url,
        events=list(dict.fromkeys(events)),
        description=description,
        sealed_secret=vault.seal(secret, endpoint_id),
    )
    return session.scalars(statement.returning(WebhookEndpoint)).one(), secret


def get_endpoint(session: Session, project_id: str, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """The project's receiver. Raises `NotFound`, also for another tenant's."""
    statement = select(WebhookEndpoint).where(*_is(project_id, endpoint_id))
    if lock:
        statement = statement.with_for_update(key_share=True)  # jobs go on announcing meanwhile
    fresh = statement.execution_options(populate_existing=True)
    row = session.scalars(fresh).one_or_none() if is_id("whe", endpoint_id) else None
    if row is None:
        raise NotFound("no such webhook endpoint", remedy="list yours with GET /v1/webhook_endpoints")
    return row


def count_endpoints(session: Session, project_id: str) -> int:
    """How many receivers the project has."""
    return session.scalar(select(func.count()).where(WebhookEndpoint.project_id == project_id)) or 0


def page(session: Session, project_id: str, *, limit: int, after: str | None) -> tuple[Sequence[WebhookEndpoint], bool]:
    """Newest first, from below `after`; and whether there are more. Raises `BadRequest` for an unknown cursor."""
    statement = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if after is not None:
        if not is_id("whe", after):
            remedy = "pass the last_id of the page before"
            raise BadRequest("the cursor is no webhook endpoint", remedy=remedy, field="after")
        statement = statement.where(WebhookEndpoint.id < after)
    rows = session.scalars(statement.order_by(WebhookEndpoint.id.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def given_up(session: Session, project_id: str) -> Sequence[WebhookEndpoint]:
    """The project's receivers that were disabled although their owner did not ask for it."""
    mine = WebhookEndpoint.project_id == project_id, WebhookEndpoint.disabled_reason.in_(("gone", "undelivered"))
    return session.scalars(select(WebhookEndpoint).where(*mine).order_by(WebhookEndpoint.id)).all()


def change_endpoint(session: Session, endpoint_id: str, **values: Any) -> WebhookEndpoint:
    """Set columns of a receiver that is there."""
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(**values)
    fresh = {"synchronize_session": False, "populate_existing": True}
    return session.scalars(statement.returning(WebhookEndpoint).execution_options(**fresh)).one()


def rotate_secret(
    session: Session, vault: Vault, endpoint: WebhookEndpoint, overlap_seconds: float
) -> tuple[WebhookEndpoint, str]:
    """Give a locked receiver a new secret, shown once; the one before signs beside it until the overlap is over."""
    secret = _new_secret()
    values = {
        "previous_sealed_secret": endpoint.sealed_secret,
        "previous_secret_until": in_seconds(overlap_seconds),
        "sealed_secret": vault.seal(secret, endpoint.id),
    }
    return change_endpoint(session, endpoint.id, **values), secret


def disable_endpoint(session: Session, endpoint_id: str, reason: str) -> WebhookEndpoint:
    """Send nothing more there; one that is disabled keeps its first reason."""
    return change_endpoint(
        session,
        endpoint_id,
        disabled_at=func.coalesce(WebhookEndpoint.disabled_at, func.now()),
        disabled_reason=func.coalesce(WebhookEndpoint.disabled_reason, reason),
    )


def enable_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint:
    """Send there again, as if nothing had failed."""
    blank = {"disabled_at": None, "disabled_reason": None, "held_until": None}
    return change_endpoint(session, endpoint_id, dead_messages=0, **blank)


def remove_endpoint(session: Session, project_id: str, endpoint_id: str) -> bool:
    """Forget a receiver and its messages; False when there is none."""
    if not is_id("whe", endpoint_id):
        return False
    statement = delete(WebhookEndpoint).where(*_is(project_id, endpoint_id))
    return session.execute(statement.returning(WebhookEndpoint.id)).first() is not None


def forget_old_secrets(session: Session) -> int:
    """Drop secrets from before a rotation that sign nothing any more: how many."""
    over = WebhookEndpoint.previous_secret_until < func.now()
    statement = update(WebhookEndpoint).where(over).values(previous_sealed_secret=None, previous_secret_until=None)
    dropped = statement.returning(WebhookEndpoint.id).execution_options(synchronize_session=False)
    return len(session.scalars(dropped).all())


def _is(project_id: str, endpoint_id: str) -> tuple[Any, ...]:
    return WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
