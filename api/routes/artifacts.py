"""The result of a job: its files, and the report among them."""

import os
import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse

from api import wire
from api.deps import JobReader, SessionDep, SettingsDep
from api.errors import BadRequest, NotFound, RangeNotSatisfiable
from api.settings import Settings
from api.store import artifacts, jobs
from api.store.models import Artifact as Row
from api.store.models import Job
from lathe.models import Artifact, Page

router = APIRouter(prefix="/v1/jobs", tags=["artifacts"])

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""The report is a page that an engine wrote: it may look like something, and do nothing."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
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
    session: SessionDep,
    settings: SettingsDep,
    caller: JobReader,
    job_id: str,
    path: str,
    range: Annotated[str | None, Header(description="One range of bytes.")] = None,
) -> Response:
    """The bytes of one file. Its SHA-256 is the `ETag`."""
    job = jobs.get(session, caller.project_id, job_id)
    row = artifacts.get(session, job.id, path)
    file = _on_disk(settings, job, row)
    if range is not None:
        _check_range(range, row.bytes)
    headers = {"ETag": f'"{row.sha256}"'}
    return FileResponse(file, media_type="application/octet-stream", filename=file.name, headers=headers)


@router.get("/{job_id}/report", response_class=Response, responses={200: {"content": _REPORT}})
def get_report(
    request: Request, session: SessionDep, settings: SettingsDep, caller: JobReader, job_id: str
) -> Response:
    """The measured before and after, as JSON; as a page with `Accept: text/html`."""
    job = jobs.get(session, caller.project_id, job_id)
    wants_page = "text/html" in request.headers.get("accept", "")
    try:
        row = artifacts.get(session, job.id, "report.html" if wants_page else "report.json")
    except NotFound as error:
        message = f"the job has no report: it is {job.status}"
        raise NotFound(message, remedy="only a job that succeeded has one") from error
    file = _on_disk(settings, job, row)
    if wants_page:
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})
    return FileResponse(file, media_type="application/json")


def _on_disk(settings: Settings, job: Job, row: Row) -> Path:
    """Where a registered file lies. A link that leads out of the job's folder is as good as absent."""
    folder = os.path.realpath(settings.artifacts_dir / job.id / str(job.epoch))
    file = Path(os.path.realpath(os.path.join(folder, row.path)))
    if not file.is_relative_to(folder) or not file.is_file() or file.stat().st_size != row.bytes:
        raise NotFound("the file is no longer where it was stored", remedy="run the recipe again")
    return file


def _check_range(value: str, size_bytes: int) -> None:
    match = _RANGE.fullmatch(value.strip())
    if match is None or match.groups() == ("", ""):
        raise BadRequest("the Range header is not one range of bytes", remedy="send bytes=FIRST-LAST or bytes=FIRST-")
    first, last = match.groups()
    if first and last and int(first) > int(last):
        raise BadRequest("the Range header ends before it begins", remedy="send bytes=FIRST-LAST")
    if (first and int(first) >= size_bytes) or (not first and not int(last)):
        error = RangeNotSatisfiable(f"the file has {size_bytes} bytes", remedy="ask for a range inside of it")
        error.headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise error
