"""The history of a job: a page of it, or a stream that follows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from api import wire
from api.deps import JobReader, ListenerDep, SessionsDep
from api.listener import Listener
from api.store import events, jobs
from api.store.session import Sessions
from lathe.models import TERMINAL, JobEvent, Page

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

PING_seconds = 15.0
"""Silence after which a stream says that it is alive, and looks for itself."""
POLL_seconds = 2.0
"""The same while the database cannot call us."""
BATCH = 500

SeqDep = Annotated[int, Query(ge=0, lt=2**31, description="Number of the last event that you have.")]
LastEventIdDep = Annotated[int | None, Header(ge=0, lt=2**31, description="The same, of a stream that broke off.")]


@dataclass(frozen=True)
class History:
    """What one owner may read of one job. Each read is a transaction of its own."""

    sessions: Sessions
    project_id: str
    job_id: str

    def above(self, seq: int, limit: int) -> tuple[list[JobEvent], bool, bool]:
        """Events above `seq`; whether there are more; and whether these are all that will ever be needed."""
        with self.sessions() as session:
            job = jobs.get(session, self.project_id, self.job_id)  # before the events: what is terminal is complete
            rows = events.after(session, self.job_id, seq, limit + 1)
        has_more = len(rows) > limit
        return [wire.event(row) for row in rows[:limit]], has_more, job.status in TERMINAL and not has_more


@router.get("/{job_id}/events", response_model=Page[JobEvent])
async def list_job_events(
    request: Request,
    sessions: SessionsDep,
    listener: ListenerDep,
    caller: JobReader,
    job_id: str,
    after: SeqDep = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """Events in order, as a page; or as server-sent events with `Accept: text/event-stream`, until the job ends."""
    history = History(sessions, caller.project_id, job_id)
    seq = after if last_event_id is None else last_event_id
    if "text/event-stream" in request.headers.get("accept", ""):
        await run_in_threadpool(history.above, seq, 1)  # an absent job is a 404, not an empty stream
        return EventSourceResponse(follow(history, listener, seq), headers={"X-Accel-Buffering": "no"})
    found, has_more, _ = await run_in_threadpool(history.above, seq, limit)
    page = wire.page(found, [str(event.seq) for event in found], has_more=has_more)
    return Response(page.model_dump_json(), media_type="application/json")


async def follow(history: History, listener: Listener, seq: int) -> AsyncIterator[bytes]:
    """Server-sent events above `seq`, then `event: end`. Between reads, no database connection is held."""
    with listener.waiting(history.job_id) as news:
        while True:
            news.clear()
            found, has_more, complete = await run_in_threadpool(history.above, seq, BATCH)
            for event in found:
                seq = event.seq
                yield format_sse_event(id=str(seq), data_str=event.model_dump_json())
            if complete:
                yield format_sse_event(event="end", data_str="{}")
                return
            if not has_more and not await woken(news, PING_seconds if listener.connected else POLL_seconds):
                yield KEEPALIVE_COMMENT


async def woken(news: asyncio.Event, seconds: float) -> bool:
    """Wait for news; False when none came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await news.wait()
    return False
