"""The machines that jobs run on."""

from fastapi import APIRouter, Request, Response

from api.dashboard.pages import PageRoute, is_partial, page
from api.dashboard.session import ViewerDep
from api.deps import SessionDep
from api.routes import workers

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/workers")
def show_workers(request: Request, session: SessionDep, viewer: ViewerDep) -> Response:
    """Which workers are there; the page asks again by itself."""
    found = workers.list_workers(session, viewer).data
    return page(
        "workers_table.html" if is_partial(request) else "workers.html",
        viewer=viewer.project_name,
        present=[each for each in found if each.status != "away"],
        away=[each for each in found if each.status == "away"],
    )
