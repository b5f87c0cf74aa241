"""What the reader does to a job from its page. A plain form works; a script only spares the way there and back."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from api import lifecycle
from api.audit import TrailDep
from api.dashboard.pages import HEADERS, PageRoute, is_partial, page
from api.dashboard.session import OURS, EditorDep, ViewerDep
from api.dashboard.snapshot import Watch
from api.deps import SessionsDep, SettingsDep, StoreDep
from api.errors import Conflict, NotFound, ServiceError
from api.lifecycle import Verb
from api.routes.webhook_messages import redeliver_webhook_message
from api.store import webhook_messages

router = APIRouter(prefix="/jobs/{job_id}", route_class=PageRoute, include_in_schema=False)

ACTS: dict[Verb, Callable[..., Any]] = {
    "pause": lifecycle.request_pause,
    "resume": lifecycle.resume,
    "cancel": lifecycle.request_cancel,
    "retry": lifecycle.retry,
    "publish": lambda session, project_id, job_id: lifecycle.request_publish(session, project_id, job_id, None),
    "delete": lifecycle.delete,
}
_FOLLOWED: frozenset[Verb] = frozenset({"pause", "resume", "cancel"})
"""The page's stream is open then, and shows what comes of it."""


def _does(verb: Verb) -> Callable[..., Response]:
    def do(
        request: Request,
        sessions: SessionsDep,
        store: StoreDep,
        settings: SettingsDep,
        viewer: EditorDep,
        trail: TrailDep,
        job_id: str,
    ) -> Response:
        try:
            with sessions.begin() as session:
                ACTS[verb](session, viewer.project_id, job_id)
                trail.note(session, viewer, f"job.{verb}", job_id)
        except ServiceError as error:
            return _refused(request, Watch(sessions, store, settings, viewer, job_id), error)
        if is_partial(request) and verb in _FOLLOWED:
            return page("job_notice.html", refused=None)
        return _go(request, "/" if verb == "delete" else f"/jobs/{job_id}")

    return do


for _verb in ACTS:
    router.add_api_route(f"/{_verb}", _does(_verb), methods=["POST"], dependencies=[OURS], name=f"job_{_verb}")


@router.post("/deliveries/{message_id}/redeliver", dependencies=[OURS])
def redeliver(
    request: Request,
    sessions: SessionsDep,
    settings: SettingsDep,
    store: StoreDep,
    viewer: ViewerDep,
    trail: TrailDep,
    job_id: str,
    message_id: str,
) -> Response:
    """Send a message about this job again, now."""
    viewer.require("webhooks:write")
    watch = Watch(sessions, store, settings, viewer, job_id, "deliveries")
    try:
        with sessions.begin() as session:
            if webhook_messages.get(session, viewer.project_id, message_id).job_id != job_id:
                raise NotFound("the message is about another job", remedy="open that job's deliveries")
            redeliver_webhook_message(session, settings, viewer, trail, message_id)
    except ServiceError as error:
        return _refused(request, watch, error)
    if is_partial(request):
        return HTMLResponse(watch.look().state(), headers=HEADERS)
    return _go(request, f"/jobs/{job_id}/deliveries")


def _refused(request: Request, watch: Watch, error: ServiceError) -> Response:
    """Why it cannot be done: a message on the page where it was asked for. Raises what leaves no such page."""
    if is_partial(request):
        return page("job_notice.html", status=error.status, refused=error)
    if not isinstance(error, Conflict):
        raise error
    found = watch.look()
    return page(
        "job.html",
        status=error.status,
        viewer=watch.viewer.project_name,
        found=found,
        job=found.job,
        refused=error,
    )


def _go(request: Request, path: str) -> Response:
    if is_partial(request):
        return Response(headers={"HX-Redirect": path})
    return RedirectResponse(path, status_code=303)
