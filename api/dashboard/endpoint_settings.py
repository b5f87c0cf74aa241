"""One webhook endpoint: what was sent there; change it, enable or disable it, give it a new secret, remove it."""

import secrets
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.audit import TrailDep
from api.auth import Caller
from api.dashboard.pages import PageRoute, is_partial
from api.dashboard.posted import PostedDep
from api.dashboard.session import OURS, ViewerDep
from api.dashboard.settings_frame import back, complaint, lacking, settings_page, status_of
from api.deps import AfterDep, SessionsDep, SettingsDep
from api.errors import ServiceError
from api.routes import webhook_messages, webhooks
from api.store.session import Sessions
from lathe.webhook_models import WebhookEndpoint, WebhookEndpointUpdate, WebhookEventType, WebhookMessageStatus

router = APIRouter(prefix="/settings/webhooks/{endpoint_id}", route_class=PageRoute, include_in_schema=False)

EVENTS: tuple[WebhookEventType, ...] = get_args(WebhookEventType)
STATES: tuple[WebhookMessageStatus, ...] = get_args(WebhookMessageStatus)
ROWS = 20


class Place(NamedTuple):
    """Which deliveries a reader looks at."""

    after: str | None = None
    state: WebhookMessageStatus | None = None
    """Of the message now."""


START = Place()


@router.get("")
def show_endpoint(
    request: Request,
    sessions: SessionsDep,
    viewer: ViewerDep,
    endpoint_id: str,
    did: str | None = None,
    after: AfterDep = None,
    state: WebhookMessageStatus | Literal[""] = "",
) -> Response:
    """Its settings and its deliveries; the page asks for those again by itself."""
    template = "settings_deliveries.html" if is_partial(request) else "settings_endpoint.html"
    if refused := lacking(viewer, "webhooks:read"):
        return refused
    return endpoint_page(sessions, viewer, endpoint_id, Place(after, state or None), template=template, did=did)


@router.post("", dependencies=[OURS])
def change_endpoint(
    sessions: SessionsDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    trail: TrailDep,
    posted: PostedDep,
    endpoint_id: str,
) -> Response:
    """Where messages go, which, and what it is for."""
    asked = {"url": posted.one("url"), "events": posted.all("event"), "description": posted.one("description")}

    def change(session: Session) -> str:
        wanted = WebhookEndpointUpdate.model_validate(asked)
        webhooks.update_webhook_endpoint(session, settings, viewer, trail, endpoint_id, wanted)
        return "changed"

    return attempt(sessions, viewer, endpoint_id, change)


@router.post("/enable", dependencies=[OURS])
def enable_endpoint(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, endpoint_id: str
) -> Response:
    """Send there again, as if nothing had failed."""

    def enable(session: Session) -> str:
        wanted = WebhookEndpointUpdate(enabled=True)
        webhooks.update_webhook_endpoint(session, settings, viewer, trail, endpoint_id, wanted)
        return "enabled"

    return attempt(sessions, viewer, endpoint_id, enable)


@router.post("/disable", dependencies=[OURS])
def disable_endpoint(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, endpoint_id: str
) -> Response:
    """Send nothing there."""

    def disable(session: Session) -> str:
        wanted = WebhookEndpointUpdate(enabled=False)
        webhooks.update_webhook_endpoint(session, settings, viewer, trail, endpoint_id, wanted)
        return "disabled"

    return attempt(sessions, viewer, endpoint_id, disable)


@router.post("/rotate_secret", dependencies=[OURS])
def rotate_secret(
    sessions: SessionsDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    trail: TrailDep,
    posted: PostedDep,
    endpoint_id: str,
) -> Response:
    """A new secret, shown once; again for the same form, for a second rotation would drop the old one at once."""
    viewer.require("webhooks:write")
    once = posted.one("once")[:64] or None
    with sessions.begin() as session:
        answer = webhooks.rotate_webhook_secret(session, settings, viewer, trail, endpoint_id, once)
    made = WebhookEndpoint.model_validate_json(bytes(answer.body))
    return endpoint_page(sessions, viewer, endpoint_id, secret=made.secret)


@router.post("/delete", dependencies=[OURS])
def delete_endpoint(sessions: SessionsDep, viewer: ViewerDep, trail: TrailDep, endpoint_id: str) -> Response:
    """Remove it; messages that were not delivered yet are dropped."""
    viewer.require("webhooks:write")
    with sessions.begin() as session:
        webhooks.delete_webhook_endpoint(session, viewer, trail, endpoint_id)
    return back("/settings/webhooks", "removed")


def attempt(sessions: Sessions, viewer: Caller, endpoint_id: str, act: Callable[[Session], str]) -> Response:
    """Change something in a transaction, and lead back to the page that says what was done; or say what is wrong."""
    viewer.require("webhooks:write")
    try:
        with sessions.begin() as session:
            did = act(session)
    except (ValidationError, ServiceError) as error:
        return endpoint_page(sessions, viewer, endpoint_id, status=status_of(error), complaint=complaint(error))
    return back(f"/settings/webhooks/{endpoint_id}", did)


def endpoint_page(
    sessions: Sessions,
    viewer: Caller,
    endpoint_id: str,
    place: Place = START,
    *,
    template: str = "settings_endpoint.html",
    status: int = 200,
    did: str | None = None,
    complaint: str | None = None,
    secret: str | None = None,
) -> Response:
    """The page of one endpoint; with its secret only in the answer that makes one. Raises `NotFound`."""
    with sessions() as session:
        endpoint = webhooks.get_webhook_endpoint(session, viewer, endpoint_id)
        sent = webhook_messages.list_webhook_deliveries(session, viewer, endpoint_id, ROWS, *place)
    return settings_page(
        template,
        viewer,
        status=status,
        did=did,
        complaint=complaint,
        endpoint=endpoint,
        secret=secret,
        deliveries=sent.data,
        next_after=sent.last_id if sent.has_more else None,
        after=place.after,
        state=place.state,
        states=STATES,
        events=EVENTS,
        once=secrets.token_urlsafe(16),
    )
