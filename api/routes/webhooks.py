"""Webhook receivers: add, list, remove."""

import ipaddress
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from fastapi import APIRouter, Depends, Response

from api import wire
from api.body import body_of
from api.deps import IdempotencyKeyDep, SessionDep, SettingsDep, WebhookReader, WebhookWriter
from api.errors import Conflict, Invalid, NotFound
from api.openapi import takes
from api.replay import Answer, Once
from api.settings import Settings
from api.store import webhooks
from lathe.models import Page, WebhookEndpoint, WebhookEndpointCreate

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])

MAX_ENDPOINTS = 50


@router.post("", status_code=201, response_model=WebhookEndpoint, openapi_extra=takes(WebhookEndpointCreate))
def create_webhook_endpoint(
    session: SessionDep,
    settings: SettingsDep,
    caller: WebhookWriter,
    wanted: Annotated[WebhookEndpointCreate, Depends(body_of(WebhookEndpointCreate))],
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Add a receiver. Its secret is in this answer and in no other."""
    _check(wanted.url, settings)
    once = Once(session, settings.vault, caller.project_id, "POST /v1/webhook_endpoints", idempotency_key)

    def add() -> Answer:
        if len(webhooks.endpoints(session, caller.project_id)) >= MAX_ENDPOINTS:
            raise Conflict(f"you have {MAX_ENDPOINTS} webhook endpoints already", remedy="remove one first")
        row, secret = webhooks.create_endpoint(session, settings.vault, caller.project_id, wanted.url, wanted.events)
        return Answer.made(f"/v1/webhook_endpoints/{row.id}", wire.endpoint(row, secret))

    return once.answer(wanted, add)


@router.get("")
def list_webhook_endpoints(session: SessionDep, caller: WebhookReader) -> Page[WebhookEndpoint]:
    """Your receivers, newest first, without their secrets."""
    rows = webhooks.endpoints(session, caller.project_id)
    return wire.page([wire.endpoint(row) for row in rows], [row.id for row in rows])


@router.delete("/{endpoint_id}", status_code=204)
def delete_webhook_endpoint(session: SessionDep, caller: WebhookWriter, endpoint_id: str) -> None:
    """Remove a receiver; messages that were not delivered yet are dropped."""
    if not webhooks.remove_endpoint(session, caller.project_id, endpoint_id):
        raise NotFound("no such webhook endpoint", remedy="list yours with GET /v1/webhook_endpoints")


def _check(url: str, settings: Settings) -> None:
    """An early word about receivers that delivery would refuse; delivery checks every address again, when it sends."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(f"not a URL: {error}", "give an https:// address") from error
    if not host or parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable():
        raise _refused("the URL needs a host, and no user, password or fragment", "give a plain https:// address")
    if not settings.allow_private_webhooks and not _is_public(parts):
        raise _refused(
            "the receiver is not a public https:// address",
            "use one, or have the operator allow it in LATHE_ALLOW_PRIVATE_WEBHOOKS",
        )


def _is_public(parts: SplitResult) -> bool:
    if parts.scheme != "https":
        return False
    try:
        return ipaddress.ip_address(parts.hostname or "").is_global
    except ValueError:
        return True


def _refused(message: str, remedy: str) -> Invalid:
    return Invalid(message, remedy=remedy, field="/url")
