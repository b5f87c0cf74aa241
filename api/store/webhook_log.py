"""The log of attempts to deliver webhook messages, for the receiver's owner. Bodies of answers are not in it."""

from collections.abc import Sequence

from sqlalchemy import Row, select, tuple_
from sqlalchemy.orm import Session

from api.errors import BadRequest
from api.ids import is_id
from api.store.models import WebhookDelivery, WebhookEndpoint, WebhookMessage


def page(
    session: Session, endpoint_id: str, *, limit: int, after: str | None, status: str | None
) -> tuple[Sequence[Row[WebhookDelivery, WebhookMessage]], bool]:
    """Attempts at one receiver with their messages, newest first, from below `after` (`msg_....3` is its third).

    Raises `BadRequest` for an unknown cursor.
    """
    place = tuple_(WebhookDelivery.at, WebhookDelivery.message_id, WebhookDelivery.attempt)
    statement = (
        select(WebhookDelivery, WebhookMessage)
        .join(WebhookMessage, WebhookMessage.id == WebhookDelivery.message_id)
        .where(WebhookDelivery.endpoint_id == endpoint_id)
    )
    if status is not None:
        statement = statement.where(WebhookMessage.status == status)
    if after is not None:
        last = _of_cursor(session, endpoint_id, after)
        statement = statement.where(place < tuple_(last.at, last.message_id, last.attempt))
    order = WebhookDelivery.at.desc(), WebhookDelivery.message_id.desc(), WebhookDelivery.attempt.desc()
    rows = session.execute(statement.order_by(*order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def of_job(
    session: Session, project_id: str, job_id: str, limit: int
) -> Sequence[Row[WebhookMessage, WebhookEndpoint, WebhookDelivery | None]]:
    """The messages about a job, newest first: where each goes, and the last attempt to deliver it, if there was one."""
    is_last = (WebhookDelivery.message_id == WebhookMessage.id) & (WebhookDelivery.attempt == WebhookMessage.attempts)
    statement = (
        select(WebhookMessage, WebhookEndpoint, WebhookDelivery)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookMessage.endpoint_id)
        .outerjoin(WebhookDelivery, is_last)
        .where(WebhookMessage.job_id == job_id, WebhookEndpoint.project_id == project_id)
        .order_by(WebhookMessage.id.desc())
        .limit(limit)
    )
    return session.execute(statement.execution_options(populate_existing=True)).all()


def cursor(row: WebhookDelivery) -> str:
    """What names an attempt."""
    return f"{row.message_id}.{row.attempt}"


def _of_cursor(session: Session, endpoint_id: str, text: str) -> WebhookDelivery:
    message_id, _, number = text.partition(".")
    known = is_id("msg", message_id) and number.isascii() and number.isdecimal() and len(number) < 10
    row = session.get(WebhookDelivery, (message_id, int(number))) if known else None
    if row is None or row.endpoint_id != endpoint_id:
        remedy = "pass the last_id of the page before; attempts are forgotten with their messages"
        raise BadRequest("the cursor is no attempt at this endpoint", remedy=remedy, field="after")
    return row
