"""What happened to a job, what its engine wrote, and what it measured."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from api import wire
from api.deps import JobReader, ListenerDep, SessionDep, SessionsDep
from api.following import Lines
from api.store import events, jobs, logs, metrics
from lathe.models import JobEvent, LogChunk, MetricCurve, Page

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SeqDep = Annotated[int, Query(ge=0, lt=2**31, description="Number of the last line that you have.")]
LastEventIdDep = Annotated[int | None, Header(ge=0, lt=2**31, description="The same, of a stream that broke off.")]
LinesDep = Annotated[int, Query(ge=1, le=1000, description="Lines of a page.")]
NameDep = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")]


@router.get("/{job_id}/events", response_model=Page[JobEvent])
async def list_job_events(
    request: Request,
    sessions: SessionsDep,
    listener: ListenerDep,
    caller: JobReader,
    job_id: str,
    after: SeqDep = 0,
    limit: LinesDep = 100,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """Events in order, as a page; or as server-sent events with `Accept: text/event-stream`, until the job ends."""
    history = Lines(sessions, caller.project_id, job_id, events.after, wire.event)
    return await history.answer(request, listener, after if last_event_id is None else last_event_id, limit)


@router.get("/{job_id}/logs", response_model=Page[LogChunk])
async def list_job_logs(
    request: Request,
    sessions: SessionsDep,
    listener: ListenerDep,
    caller: JobReader,
    job_id: str,
    after: SeqDep = 0,
    limit: LinesDep = 100,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """The engine's log in pieces, in order, as a page; or as server-sent events, like the events."""
    log = Lines(sessions, caller.project_id, job_id, logs.after, wire.log_chunk)
    return await log.answer(request, listener, after if last_event_id is None else last_event_id, limit)


@router.get("/{job_id}/metrics")
def get_job_metrics(
    session: SessionDep,
    caller: JobReader,
    job_id: str,
    points: Annotated[int, Query(ge=1, le=2000, description="Most points of a curve.")] = 200,
    stage: NameDep = None,
    name: NameDep = None,
) -> Page[MetricCurve]:
    """Every curve of a job. Where it has more steps than `points`, neighbours become one: mean, least and greatest."""
    job = jobs.get(session, caller.project_id, job_id)
    found = wire.curves(metrics.curves(session, job.id, points=points, stage=stage, name=name))
    return wire.page(found, [f"{each.stage}/{each.name}" for each in found])
