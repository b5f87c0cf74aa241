"""The project: its limits, what it uses of them, and what was done in it."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.dashboard.pages import PageRoute
from api.dashboard.session import ViewerDep
from api.dashboard.settings_frame import lacking, settings_page
from api.deps import SessionDep
from api.routes import keys, project

router = APIRouter(prefix="/settings", route_class=PageRoute, include_in_schema=False)

ENTRIES = 50


@router.get("")
def show_project(session: SessionDep, viewer: ViewerDep) -> Response:
    """Limits and usage. Only the operator of the service changes limits."""
    return settings_page("settings_project.html", viewer, project=project.get_project(session, viewer))


@router.get("/audit")
def show_audit(
    session: SessionDep, viewer: ViewerDep, after: Annotated[int | None, Query(ge=1, lt=2**63)] = None
) -> Response:
    """Who did what, newest first; with the names of keys for a reader who may see them."""
    if refused := lacking(viewer, "audit:read"):
        return refused
    entries = project.list_audit_entries(session, viewer, ENTRIES, after)
    may_see_keys = "keys:read" in viewer.scopes
    names = {key.id: key.name for key in keys.list_keys(session, viewer).data} if may_see_keys else {}
    return settings_page("settings_audit.html", viewer, entries=entries, names=names, after=after)
