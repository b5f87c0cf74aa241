"""A job's page that keeps itself up to date: one stream of HTML a page."""

import asyncio
from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.dashboard.snapshot import Watch
from api.dashboard.tabs import TABS
from api.following import PING_seconds, POLL_seconds, woken
from api.listener import Listener


async def follow(watch: Watch, listener: Listener, seq: int) -> AsyncIterator[bytes]:
    """Messages whenever the page would look different, then `event: end`. Holds no connection between looks."""
    shown = ""
    with listener.waiting(watch.job_id) as news:
        while True:
            news.clear()
            found = await run_in_threadpool(watch.look, seq)
            state = await run_in_threadpool(found.state)
            if state != shown or found.lines:
                shown = state
                yield format_sse_event(id=str(found.seq), data_str=_one_event(found.message()))
            more, seq = found.seq > seq, found.seq
            if found.settled and not more:
                yield format_sse_event(event="end", data_str="{}")
                return
            if not more and not await woken(news, PING_seconds if listener.connected else POLL_seconds):
                yield KEEPALIVE_COMMENT
            await asyncio.sleep(TABS[watch.tab].breath_seconds)


def _one_event(html: str) -> str:
    """A lone carriage return in somebody's text would end a line of the stream."""
    return html.replace("\r", "&#13;")
