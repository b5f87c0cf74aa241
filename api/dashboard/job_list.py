"""The list of jobs."""

from typing import Literal

from fastapi import APIRouter, Request, Response

from api import wire
from api.dashboard.pages import PageRoute, is_partial, page
from api.dashboard.session import ViewerDep
from api.deps import AfterDep, SessionDep
from api.store import listing, stages, webhooks
from lathe.models import JobStatus

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ROWS = 20
Show = Literal["all", "active", "succeeded", "failed", "cancelled"]
_STATUSES: dict[Show, tuple[JobStatus, ...]] = {
    "all": (),
    "active": ("queued", "running", "pausing", "paused", "cancelling"),
    "succeeded": ("succeeded",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}


@router.get("/")
def show_jobs(
    request: Request, session: SessionDep, viewer: ViewerDep, after: AfterDep = None, show: Show = "all"
) -> Response:
    """The newest jobs; the page asks again by itself."""
    query = listing.Query(statuses=_STATUSES[show])
    rows, has_more = listing.page(session, viewer.project_id, limit=ROWS, query=query, after=after)
    steps = stages.by_job(session, [row.id for row in rows])
    return page(
        "jobs_table.html" if is_partial(request) else "jobs.html",
        viewer=viewer.project_name,
        silent=[wire.endpoint(row) for row in webhooks.given_up(session, viewer.project_id)],
        jobs=[wire.job(row, steps[row.id]) for row in rows],
        show=show,
        shows=list(_STATUSES),
        after=after,
        next_after=rows[-1].id if has_more else None,
    )
