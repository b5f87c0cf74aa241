"""Webhook endpoints of the project: list them, add one."""

import secrets

from fastapi import APIRouter, Response
from pydantic import ValidationError

from api.audit import TrailDep
from api.auth import Caller
from api.dashboard import endpoint_settings
from api.dashboard.pages import PageRoute
from api.dashboard.posted import Posted, PostedDep
from api.dashboard.session import OURS, ViewerDep
from api.dashboard.settings_frame import complaint, lacking, settings_page, status_of
from api.deps import SessionsDep, SettingsDep
from api.errors import ServiceError
from api.routes import webhooks
from api.store.session import Sessions
from lathe.webhook_models import WebhookEndpoint, WebhookEndpointCreate

router = APIRouter(prefix="/settings/webhooks", route_class=PageRoute, include_in_schema=False)

USUAL = WebhookEndpointCreate.model_fields["events"].default


@router.get("")
def show_endpoints(sessions: SessionsDep, viewer: ViewerDep, did: str | None = None) -> Response:
    """All endpoints, and the form for a new one."""
    return lacking(viewer, "webhooks:read") or _endpoints(sessions, viewer, did=did)


@router.post("", dependencies=[OURS])
def create_endpoint(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, posted: PostedDep
) -> Response:
    """Add one, and show its secret once: again for the same form, should the page be loaded again."""
    viewer.require("webhooks:write")
    asked = {"url": posted.one("url"), "events": posted.all("event"), "description": posted.one("description")}
    try:
        wanted, once = WebhookEndpointCreate.model_validate(asked), posted.one("once")[:64] or None
        with sessions.begin() as session:
            answer = webhooks.create_webhook_endpoint(session, settings, viewer, trail, wanted, once)
    except (ValidationError, ServiceError) as error:
        return _endpoints(sessions, viewer, status=status_of(error), complaint=complaint(error), posted=posted)
    made = WebhookEndpoint.model_validate_json(bytes(answer.body))
    return endpoint_settings.endpoint_page(sessions, viewer, made.id, secret=made.secret)


def _endpoints(
    sessions: Sessions,
    viewer: Caller,
    *,
    status: int = 200,
    did: str | None = None,
    complaint: str | None = None,
    posted: Posted | None = None,
) -> Response:
    shown: tuple[WebhookEndpoint, ...] = ()
    if "webhooks:read" in viewer.scopes:
        with sessions() as session:
            shown = webhooks.list_webhook_endpoints(session, viewer, limit=webhooks.MAX_ENDPOINTS).data
    return settings_page(
        "settings_webhooks.html",
        viewer,
        status=status,
        did=did,
        complaint=complaint,
        endpoints=shown,
        events=endpoint_settings.EVENTS,
        ticked=posted.all("event") if posted else USUAL,
        url=posted.one("url") if posted else "",
        description=posted.one("description") if posted else "",
        once=secrets.token_urlsafe(16),
    )
