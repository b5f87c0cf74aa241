"""Webhook messages: try a receiver out, see what was sent, send it again."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from api import lifecycle, wire
from api.audit import TrailDep
from api.body import body_of
from api.deps import AfterDep, IdempotencyKeyDep, LimitDep, SessionDep, SettingsDep, WebhookReader, WebhookWriter
from api.errors import Conflict
from api.openapi import takes
from api.replay import Answer, Once
from api.store import webhook_log, webhook_messages, webhooks
from api.store.models import WebhookEndpoint as Endpoint
from api.store.models import WebhookMessage as Row
from lathe.models import Page
from lathe.webhook_models import (
    WebhookDelivery,
    WebhookMessage,
    WebhookMessageStatus,
    WebhookReplay,
    WebhookReplayed,
)

router = APIRouter(prefix="/v1", tags=["webhooks"])

MAX_REPLAY = 1000


@router.post("/webhook_endpoints/{endpoint_id}/test", status_code=201, response_model=WebhookMessage)
def send_test_webhook(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    endpoint_id: str,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Send a message of type `webhook.test`; its deliveries tell how the receiver took it."""
    route = f"POST /v1/webhook_endpoints/{endpoint_id}/test"
    once = Once(session, settings.vault, caller.project_id, route, idempotency_key)

    def send() -> Answer:
        endpoint = _ready(session, caller.project_id, endpoint_id)
        row = lifecycle.announce_test(session, endpoint.id)
        trail.note(session, caller, "webhook.test", endpoint.id)
        return Answer.made(f"/v1/webhook_messages/{row.id}", wire.webhook_message(row))

    return once.answer(None, send)


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_webhook_deliveries(
    session: SessionDep,
    caller: WebhookReader,
    endpoint_id: str,
    limit: LimitDep = 20,
    after: AfterDep = None,
    status: Annotated[
        WebhookMessageStatus | None, Query(description="Only attempts at messages that are in this state now.")
    ] = None,
) -> Page[WebhookDelivery]:
    """What was tried at a receiver, newest first: what it answered, or why no answer came. Never what it wrote."""
    endpoint = webhooks.get_endpoint(session, caller.project_id, endpoint_id)
    rows, has_more = webhook_log.page(session, endpoint.id, limit=limit, after=after, status=status)
    ids = [webhook_log.cursor(row) for row, _ in rows]
    return wire.page([wire.webhook_delivery(row, message) for row, message in rows], ids, has_more=has_more)


@router.post(
    "/webhook_endpoints/{endpoint_id}/replay",
    response_model=WebhookReplayed,
    openapi_extra=takes(WebhookReplay),
)
def replay_webhook_messages(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    endpoint_id: str,
    wanted: Annotated[WebhookReplay, Depends(body_of(WebhookReplay))],
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Send the messages of a period again: those that were given up, or those that were delivered too."""
    route = f"POST /v1/webhook_endpoints/{endpoint_id}/replay"
    once = Once(session, settings.vault, caller.project_id, route, idempotency_key)

    def replay() -> Answer:
        endpoint = _ready(session, caller.project_id, endpoint_id)
        chosen = webhook_messages.in_range(endpoint.id, wanted.statuses, wanted.since, wanted.until)
        if webhook_messages.count(session, *chosen, limit=MAX_REPLAY + 1) > MAX_REPLAY:
            raise Conflict(f"more than {MAX_REPLAY} messages lie in this period", remedy="replay a shorter one")
        sent = webhook_messages.send_again(session, *chosen)
        trail.note(session, caller, "webhook.replay", endpoint.id)
        return Answer.of(WebhookReplayed(messages=len(sent)))

    return once.answer(wanted, replay)


@router.get("/webhook_messages/{message_id}")
def get_webhook_message(session: SessionDep, caller: WebhookReader, message_id: str) -> WebhookMessage:
    """One message: what it says, and whether it was delivered."""
    return wire.webhook_message(webhook_messages.get(session, caller.project_id, message_id))


@router.post("/webhook_messages/{message_id}/redeliver", response_model=WebhookMessage)
def redeliver_webhook_message(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    message_id: str,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Send a message again, now: one that was given up or delivered, or one that waits for its next attempt."""
    route = f"POST /v1/webhook_messages/{message_id}/redeliver"
    once = Once(session, settings.vault, caller.project_id, route, idempotency_key)

    def redeliver() -> Answer:
        message = webhook_messages.get(session, caller.project_id, message_id)
        _ready(session, caller.project_id, message.endpoint_id)
        webhook_messages.send_again(session, Row.id == message.id)
        trail.note(session, caller, "webhook.redeliver", message.id)
        return Answer.of(wire.webhook_message(webhook_messages.get(session, caller.project_id, message_id)))

    return once.answer(None, redeliver)


def _ready(session: SessionDep, project_id: str, endpoint_id: str) -> Endpoint:
    """The receiver, locked, and no longer held back: its owner wants a message sent now."""
    endpoint = webhooks.get_endpoint(session, project_id, endpoint_id, lock=True)
    if endpoint.disabled_at is not None:
        raise Conflict("the webhook endpoint is disabled", remedy='enable it first: PATCH it with {"enabled": true}')
    return webhooks.change_endpoint(session, endpoint.id, held_until=None) if endpoint.held_until else endpoint
