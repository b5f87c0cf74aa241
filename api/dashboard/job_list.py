"""The list of jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from api import wire
from api.dashboard.job_filter import STATUSES, JobFilter
from api.dashboard.pages import PageRoute, is_partial, page
from api.dashboard.session import ViewerDep
from api.deps import SessionDep
from api.errors import BadRequest
from api.store import listing, stages, webhooks
from lathe.models import Job
from optcore.frozen import members, tag
from optcore.techniques import AnyTechnique

router = APIRouter(route_class=PageRoute, include_in_schema=False)

ROWS = 20


@dataclass(frozen=True)
class Rows:
    """A page of the list."""

    asked: JobFilter
    jobs: Sequence[Job] = ()
    newer: str | None = None
    """Address of the page before."""
    older: str | None = None
    """Of the page behind; newer and older change places where the oldest come first."""
    complaint: BadRequest | None = None

    @property
    def is_live(self) -> bool:
        """Whether new jobs may appear on this page while it is looked at."""
        return self.asked.is_live and self.newer is None and self.complaint is None

    @property
    def refresh(self) -> str | None:
        """Where a script asks again: for the page while that is cheap, else for its rows; None if nothing moves."""
        if self.is_live:
            return self.asked.address()
        if all(job.is_terminal for job in self.jobs):
            return None
        return self.asked.address(only=[job.id for job in self.jobs])


@router.get("/")
def show_jobs(
    request: Request, session: SessionDep, viewer: ViewerDep, asked: Annotated[JobFilter, Query()]
) -> Response:
    """A page of the jobs that the reader asks for; the page asks again by itself."""
    whole = "jobs_table.html" if is_partial(request) else "jobs.html"
    return page(
        "jobs_rows.html" if asked.only else whole,
        viewer=viewer.project_name,
        silent=[wire.endpoint(row) for row in webhooks.given_up(session, viewer.project_id)],
        rows=_rows(session, viewer.project_id, asked),
        asked=asked,
        shows=list(STATUSES),
        unfinished=listing.count_unfinished(session, viewer.project_id),
        techniques=[tag(kind) for kind in members(AnyTechnique)],
    )


def _rows(session: Session, project_id: str, asked: JobFilter) -> Rows:
    try:
        query = asked.query()
    except BadRequest as error:
        return Rows(asked, complaint=error)
    found, has_more = listing.page(session, project_id, limit=ROWS, query=query, after=asked.after, before=asked.before)
    if asked.before and not has_more:  # the first page, and whole again
        return _rows(session, project_id, asked.model_copy(update={"after": None, "before": None}))
    steps = stages.by_job(session, [row.id for row in found])
    has_newer, has_older = bool(asked.after or asked.before), has_more or bool(asked.before)
    return Rows(
        asked,
        [wire.job(row, steps[row.id]) for row in found],
        newer=asked.address(before=found[0].id) if found and has_newer else asked.address() if has_newer else None,
        older=asked.address(after=found[-1].id) if found and has_older else None,
    )
