"""Numbered lines of a job, as a page or as a stream that follows them until the job ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import wire
from api.listener import Listener
from api.store import jobs
from api.store.session import Sessions
from lathe.models import TERMINAL

PING_seconds = 15.0
"""Silence after which a stream says that it is alive, and looks for itself."""
POLL_seconds = 2.0
"""The same while the database cannot call us."""
BATCH = 500


class Numbered(Protocol):
    """A wire model of a line."""

    @property
    def seq(self) -> int:
        """Its number: they rise without gaps."""
        ...

    def model_dump_json(self) -> str:
        """As JSON."""
        ...


@dataclass(frozen=True)
class Lines:
    """What one project may read of one job. Each read is a transaction of its own."""

    sessions: Sessions
    project_id: str
    job_id: str
    read: Callable[[Session, str, int, int], Sequence[Any]]
    """Rows of a job above a number, at most so many."""
    show: Callable[[Any], Any]
    """A row as its wire model."""

    def above(self, seq: int, limit: int) -> tuple[list[Numbered], bool, bool]:
        """Lines above `seq`; whether there are more; and whether these are all that there will be."""
        with self.sessions() as session:
            job = jobs.get(session, self.project_id, self.job_id)  # before the lines: what is terminal is complete
            rows = self.read(session, self.job_id, seq, limit + 1)
        has_more = len(rows) > limit
        return [self.show(row) for row in rows[:limit]], has_more, job.status in TERMINAL and not has_more

    async def answer(self, request: Request, listener: Listener, seq: int, limit: int) -> Response:
        """A page; or server-sent events where the request asks for them."""
        if "text/event-stream" in request.headers.get("accept", ""):
            await run_in_threadpool(self.above, seq, 1)  # an absent job is a 404, not an empty stream
            return EventSourceResponse(self.follow(listener, seq), headers={"X-Accel-Buffering": "no"})
        found, has_more, _ = await run_in_threadpool(self.above, seq, limit)
        data: list[BaseModel] = list(found)  # type: ignore[arg-type]
        page = wire.page(data, [str(line.seq) for line in found], has_more=has_more)
        return Response(page.model_dump_json(), media_type="application/json")

    async def follow(self, listener: Listener, seq: int) -> AsyncIterator[bytes]:
        """Server-sent events above `seq`, then `event: end`. Between reads, no database connection is held."""
        with listener.waiting(self.job_id) as news:
            while True:
                news.clear()
                found, has_more, complete = await run_in_threadpool(self.above, seq, BATCH)
                for line in found:
                    seq = line.seq
                    yield format_sse_event(id=str(seq), data_str=line.model_dump_json())
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
