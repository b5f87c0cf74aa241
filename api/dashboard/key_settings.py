"""API keys of the project: list, make one, revoke one."""

import secrets

from fastapi import APIRouter, Response
from pydantic import ValidationError

from api.audit import TrailDep
from api.auth import Caller
from api.dashboard.pages import PageRoute
from api.dashboard.posted import Posted, PostedDep
from api.dashboard.session import OURS, ViewerDep
from api.dashboard.settings_frame import back, complaint, lacking, settings_page, status_of
from api.deps import KeyringDep, SessionsDep, SettingsDep
from api.errors import ServiceError
from api.routes import keys
from api.store.session import Sessions
from lathe.models import SCOPES, ApiKey, ApiKeyCreate

router = APIRouter(prefix="/settings/keys", route_class=PageRoute, include_in_schema=False)

LIFETIMES = (("7", "7 days"), ("30", "30 days"), ("90", "90 days"), ("365", "A year"), ("", "Never"))


@router.get("")
def show_keys(sessions: SessionsDep, viewer: ViewerDep, did: str | None = None) -> Response:
    """All keys, newest first, and the form for a new one."""
    return lacking(viewer, "keys:read") or _keys(sessions, viewer, did=did)


@router.post("", dependencies=[OURS])
def create_key(
    sessions: SessionsDep, settings: SettingsDep, viewer: ViewerDep, trail: TrailDep, posted: PostedDep
) -> Response:
    """Make a key, and show it once: again for the same form, should the page be loaded again."""
    viewer.require("keys:write")
    try:
        wanted = _wanted(posted)
        with sessions.begin() as session:
            answer = keys.create_key(session, settings, viewer, trail, wanted, posted.one("once")[:64] or None)
    except (ValidationError, ServiceError) as error:
        return _keys(sessions, viewer, status=status_of(error), complaint=complaint(error), posted=posted)
    return _keys(sessions, viewer, made=ApiKey.model_validate_json(bytes(answer.body)))


@router.post("/{key_id}/revoke", dependencies=[OURS])
def revoke_key(sessions: SessionsDep, keyring: KeyringDep, viewer: ViewerDep, trail: TrailDep, key_id: str) -> Response:
    """Refuse a key from now on; the reader's own ends the session too."""
    viewer.require("keys:write")
    keys.revoke_key(sessions, keyring, viewer, trail, key_id)
    return back("/settings/keys", "revoked")


def _wanted(posted: Posted) -> ApiKeyCreate:
    days = posted.one("days") or None
    return ApiKeyCreate.model_validate(
        {"name": posted.one("name"), "scopes": posted.all("scope"), "expires_in_days": days}
    )


def _keys(
    sessions: Sessions,
    viewer: Caller,
    *,
    status: int = 200,
    did: str | None = None,
    complaint: str | None = None,
    made: ApiKey | None = None,
    posted: Posted | None = None,
) -> Response:
    shown: tuple[ApiKey, ...] = ()
    if "keys:read" in viewer.scopes:
        with sessions() as session:
            shown = keys.list_keys(session, viewer).data
    return settings_page(
        "settings_keys.html",
        viewer,
        status=status,
        did=did,
        complaint=complaint,
        made=made,
        keys=[key for key in shown if key.revoked_at is None],
        revoked=[key for key in shown if key.revoked_at is not None],
        own=viewer.key_id,
        grantable=[scope for scope in SCOPES if scope in viewer.scopes],
        lifetimes=LIFETIMES,
        name=posted.one("name") if posted else "",
        ticked=posted.all("scope") if posted else ("jobs:read",),
        days=posted.one("days") if posted else "90",
        once=secrets.token_urlsafe(16),
    )
