"""Webhook receivers: add, look at, change, remove; a new secret."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api import receiver_url, wire
from api.audit import TrailDep
from api.body import body_of
from api.deps import AfterDep, IdempotencyKeyDep, LimitDep, SessionDep, SettingsDep, WebhookReader, WebhookWriter
from api.errors import Conflict, NotFound
from api.openapi import takes
from api.replay import Answer, Once
from api.store import webhooks
from lathe.models import Page
from lathe.webhook_models import WebhookEndpoint, WebhookEndpointCreate, WebhookEndpointUpdate

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])

MAX_ENDPOINTS = 50


@router.post("", status_code=201, response_model=WebhookEndpoint, openapi_extra=takes(WebhookEndpointCreate))
def create_webhook_endpoint(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    wanted: Annotated[WebhookEndpointCreate, Depends(body_of(WebhookEndpointCreate))],
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Add a receiver. Its secret is in this answer and in no other."""
    receiver_url.check(wanted.url, settings)
    once = Once(session, settings.vault, caller.project_id, "POST /v1/webhook_endpoints", idempotency_key)

    def add() -> Answer:
        if webhooks.count_endpoints(session, caller.project_id) >= MAX_ENDPOINTS:
            raise Conflict(f"you have {MAX_ENDPOINTS} webhook endpoints already", remedy="remove one first")
        row, secret = webhooks.create_endpoint(
            session, settings.vault, caller.project_id, wanted.url, wanted.events, wanted.description
        )
        trail.note(session, caller, "webhook.create", row.id)
        return Answer.made(f"/v1/webhook_endpoints/{row.id}", wire.endpoint(row, secret))

    return once.answer(wanted, add)


@router.get("")
def list_webhook_endpoints(
    session: SessionDep, caller: WebhookReader, limit: LimitDep = 20, after: AfterDep = None
) -> Page[WebhookEndpoint]:
    """Your receivers, newest first, without their secrets."""
    rows, has_more = webhooks.page(session, caller.project_id, limit=limit, after=after)
    return wire.page([wire.endpoint(row) for row in rows], [row.id for row in rows], has_more=has_more)


@router.get("/{endpoint_id}")
def get_webhook_endpoint(session: SessionDep, caller: WebhookReader, endpoint_id: str) -> WebhookEndpoint:
    """One receiver, and whether anything is sent there."""
    return wire.endpoint(webhooks.get_endpoint(session, caller.project_id, endpoint_id))


@router.patch("/{endpoint_id}", openapi_extra=takes(WebhookEndpointUpdate))
def update_webhook_endpoint(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    endpoint_id: str,
    wanted: Annotated[WebhookEndpointUpdate, Depends(body_of(WebhookEndpointUpdate))],
) -> WebhookEndpoint:
    """Change where messages go, which, or whether any do. What is absent stays as it is."""
    if wanted.url is not None:
        receiver_url.check(wanted.url, settings)
    row = webhooks.get_endpoint(session, caller.project_id, endpoint_id, lock=True)
    if changes := wanted.model_dump(exclude={"enabled"}, exclude_none=True):
        row = webhooks.change_endpoint(session, row.id, **changes)
    if wanted.enabled is True:
        row = webhooks.enable_endpoint(session, row.id)
    elif wanted.enabled is False:
        row = webhooks.disable_endpoint(session, row.id, "owner")
    trail.note(session, caller, "webhook.update", row.id)
    return wire.endpoint(row)


@router.delete("/{endpoint_id}", status_code=204)
def delete_webhook_endpoint(session: SessionDep, caller: WebhookWriter, trail: TrailDep, endpoint_id: str) -> None:
    """Remove a receiver; messages that were not delivered yet are dropped."""
    if not webhooks.remove_endpoint(session, caller.project_id, endpoint_id):
        raise NotFound("no such webhook endpoint", remedy="list yours with GET /v1/webhook_endpoints")
    trail.note(session, caller, "webhook.delete", endpoint_id)


@router.post("/{endpoint_id}/rotate_secret", response_model=WebhookEndpoint)
def rotate_webhook_secret(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    trail: TrailDep,
    endpoint_id: str,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Give a receiver a new secret, shown in this answer only. For a day messages are signed with the old one as well.

    A second rotation drops the first secret at once: rotate twice when it leaked.
    """
    route = f"POST /v1/webhook_endpoints/{endpoint_id}/rotate_secret"
    once = Once(session, settings.vault, caller.project_id, route, idempotency_key)

    def rotate() -> Answer:
        row = webhooks.get_endpoint(session, caller.project_id, endpoint_id, lock=True)
        row, secret = webhooks.rotate_secret(session, settings.vault, row, settings.webhook_rotation_seconds)
        trail.note(session, caller, "webhook.rotate_secret", row.id)
        return Answer.of(wire.endpoint(row, secret))

    return once.answer(None, rotate)
