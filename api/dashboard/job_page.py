"""The page of one job, a tab at a time: what it does now, live; and the files that it gives away."""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from api.dashboard import live
from api.dashboard.pages import HEADERS, PageRoute, is_partial, page
from api.dashboard.session import ViewerDep
from api.dashboard.snapshot import Watch
from api.dashboard.tabs import TABS, Tab
from api.deps import ListenerDep, PaceDep, SessionDep, SessionsDep, SettingsDep, StoreDep
from api.download import WantedDep
from api.routes import artifacts
from api.routes.events import LastEventIdDep, SeqDep
from api.store import jobs
from optcore.recipe import recipe_from

router = APIRouter(prefix="/jobs/{job_id}", route_class=PageRoute, include_in_schema=False)

WITH_OWN_PAGE = {"logs"}
"""Tabs that need more than the job."""


def _shows(tab: Tab) -> Callable[..., Response]:
    def show_tab(
        request: Request, sessions: SessionsDep, store: StoreDep, settings: SettingsDep, viewer: ViewerDep, job_id: str
    ) -> Response:
        found = Watch(sessions, store, settings, viewer, job_id, tab).look()
        if is_partial(request):
            return HTMLResponse(found.state(), headers=HEADERS)
        return page("job.html", viewer=viewer.project_name, found=found, job=found.job, refused=None)

    return show_tab


for _tab, _room in TABS.items():
    if _tab not in WITH_OWN_PAGE:
        router.add_api_route(_room.path, _shows(_tab), name=f"job_{_tab}")


@router.get("/live")
async def follow_job(
    sessions: SessionsDep,
    store: StoreDep,
    settings: SettingsDep,
    listener: ListenerDep,
    pace: PaceDep,
    viewer: ViewerDep,
    job_id: str,
    tab: Tab = "overview",
    after: SeqDep = 0,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """The page's stream."""
    watch = Watch(sessions, store, settings, viewer, job_id, tab)
    seq = after if last_event_id is None else last_event_id
    await run_in_threadpool(watch.look, seq)  # an absent job is a 404, not an empty stream
    return EventSourceResponse(live.follow(watch, listener, pace, seq), headers={"X-Accel-Buffering": "no"})


@router.get("/recipe.yaml")
def download_recipe(session: SessionDep, viewer: ViewerDep, job_id: str) -> Response:
    """The recipe as a file, pinned where that is known."""
    job = jobs.get(session, viewer.project_id, job_id)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.yaml"'}
    text = recipe_from(job.resolved or job.recipe).to_yaml()
    return Response(text, media_type="application/yaml", headers=headers)


@router.get("/report")
def show_report(
    request: Request, sessions: SessionsDep, store: StoreDep, viewer: ViewerDep, job_id: str, asked: WantedDep
) -> Response:
    """The report that the engine wrote, in its own sandbox."""
    return artifacts.get_report(request, sessions, store, viewer, job_id, asked)


@router.get("/artifacts/{path:path}")
def download_file(
    sessions: SessionsDep, store: StoreDep, viewer: ViewerDep, job_id: str, path: str, asked: WantedDep
) -> Response:
    """One file of the result."""
    return artifacts.download_artifact(sessions, store, viewer, job_id, path, asked)
