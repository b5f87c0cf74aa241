"""The result of a job: its files, and the report among them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api import wire
from api.deps import JobReader, SessionDep, SessionsDep, StoreDep
from api.download import WantedDep, answer, attachment
from api.errors import NotFound
from api.store import artifacts, jobs
from lathe.models import Artifact, Page

router = APIRouter(prefix="/v1/jobs", tags=["artifacts"])

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""The report is a page that an engine wrote: it may look like something, and do nothing."""
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_REPORT = {"application/json": {"schema": {"type": "object"}}, "text/html": {"schema": {"type": "string"}}}


@router.get("/{job_id}/artifacts")
def list_artifacts(
    session: SessionDep,
    caller: JobReader,
    job_id: str,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after: Annotated[str | None, Query(max_length=4096, pattern=r"^[^\x00]*$")] = None,
) -> Page[Artifact]:
    """The files of a finished job, by path; none before it succeeded."""
    jobs.get(session, caller.project_id, job_id)
    rows = artifacts.page(session, job_id, limit=limit + 1, after=after)
    kept = rows[:limit]
    return wire.page([wire.artifact(row) for row in kept], [row.path for row in kept], has_more=len(rows) > limit)


@router.get(
    "/{job_id}/artifacts/{path:path}",
    response_class=Response,
    responses={200: {"content": _BYTES}, 206: {"description": "The range asked for", "content": _BYTES}},
)
def download_artifact(
    sessions: SessionsDep, store: StoreDep, caller: JobReader, job_id: str, path: str, asked: WantedDep
) -> Response:
    """The bytes of one file. Its SHA-256 is the `ETag`."""
    with sessions() as session:  # given back before the store is asked, which may take its time
        job = jobs.get(session, caller.project_id, job_id)
        file = artifacts.get(session, job.id, path)
    return answer(store, job, file, asked, media_type="application/octet-stream", headers=attachment(path))


@router.get(
    "/{job_id}/report",
    response_class=Response,
    responses={200: {"content": _REPORT}, 206: {"description": "The range asked for", "content": _REPORT}},
)
def get_report(
    request: Request, sessions: SessionsDep, store: StoreDep, caller: JobReader, job_id: str, asked: WantedDep
) -> Response:
    """The measured before and after, as JSON; as a page with `Accept: text/html`."""
    wants_page = "text/html" in request.headers.get("accept", "")
    with sessions() as session:
        job = jobs.get(session, caller.project_id, job_id)
        try:
            file = artifacts.get(session, job.id, "report.html" if wants_page else "report.json")
        except NotFound as error:
            message = f"the job has no report: it is {job.status}"
            raise NotFound(message, remedy="only a job that succeeded has one") from error
    if wants_page:
        policy = {"Content-Security-Policy": REPORT_POLICY}
        return answer(store, job, file, asked, media_type="text/html", headers=policy)
    return answer(store, job, file, asked, media_type="application/json", headers={})
