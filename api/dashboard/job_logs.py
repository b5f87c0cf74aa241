"""The log of a job's engine: its end first, the rest a page at a time, whole as a file, and live."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.dashboard import log_text
from api.dashboard.pages import HEADERS, PageRoute, is_partial, page
from api.dashboard.session import ViewerDep
from api.dashboard.snapshot import Watch
from api.deps import ListenerDep, SessionsDep, SettingsDep, StoreDep
from api.following import Lines
from api.routes.events import LastEventIdDep, SeqDep
from api.store import attempts, jobs, logs
from api.store.models import LogChunk

router = APIRouter(prefix="/jobs/{job_id}/logs", route_class=PageRoute, include_in_schema=False)


class Chosen:
    """The part of the log that the address asks for."""

    def __init__(
        self,
        attempt: Annotated[str, Query(pattern=r"^\d{0,9}$")] = "",
        stage: Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")] = "",
    ) -> None:
        self.epoch = int(attempt) if attempt else None
        self.stage = stage or None

    def part(self, session: Session, job_id: str) -> logs.Part:
        """As the store takes it."""
        return log_text.part(session, job_id, self.epoch, self.stage)


ChosenDep = Annotated[Chosen, Depends(Chosen)]
BeforeDep = Annotated[int | None, Query(ge=1, lt=2**31)]


@router.get("")
def show_log(
    request: Request,
    sessions: SessionsDep,
    store: StoreDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    job_id: str,
    chosen: ChosenDep,
    before: BeforeDep = None,
) -> Response:
    """The end of the log, or what comes before a piece; the script follows from there."""
    found = Watch(sessions, store, settings, viewer, job_id, "logs").look()
    if is_partial(request):
        return HTMLResponse(found.state(), headers=HEADERS)
    with sessions() as session:
        rows, has_more = logs.before(session, job_id, before, log_text.PAGE_bytes, chosen.part(session, job_id))
        tried = attempts.of(session, job_id)
    return page(
        "job.html",
        viewer=viewer.project_name,
        found=found,
        job=found.job,
        refused=None,
        text=log_text.readable("".join(row.text for row in rows)),
        first=rows[0].seq if rows else 0,
        last=rows[-1].seq if rows else 0,
        has_more=has_more,
        before=before,
        chosen=chosen,
        attempts=tried,
    )


@router.get("/live")
async def follow_log(
    sessions: SessionsDep,
    listener: ListenerDep,
    viewer: ViewerDep,
    job_id: str,
    chosen: ChosenDep,
    after: SeqDep = 0,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """Pieces as JSON, as they come, until the job ends."""

    def read(session: Session, job_id: str, seq: int, limit: int) -> Sequence[LogChunk]:
        return logs.after(session, job_id, seq, limit, chosen.part(session, job_id))

    lines = Lines(sessions, viewer.project_id, job_id, read, log_text.piece)
    seq = after if last_event_id is None else last_event_id
    await run_in_threadpool(lines.above, seq, 1)  # an absent job is a 404, not an empty stream
    return EventSourceResponse(lines.follow(listener, seq), headers={"X-Accel-Buffering": "no"})


@router.get(".txt")
def download_log(sessions: SessionsDep, viewer: ViewerDep, job_id: str, chosen: ChosenDep) -> Response:
    """All of it as a file."""
    with sessions() as session:
        job = jobs.get(session, viewer.project_id, job_id)
        part = chosen.part(session, job.id)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.log.txt"'}
    return StreamingResponse(log_text.whole(sessions, job.id, part), media_type="text/plain", headers=headers)
