"""A job's page that keeps itself up to date: one stream of HTML a page."""

import asyncio
from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.dashboard.snapshot import Snapshot, Watch
from api.dashboard.tabs import TABS
from api.following import PING_seconds, POLL_seconds, woken
from api.listener import Listener
from api.pace import Pace


async def follow(watch: Watch, listener: Listener, pace: Pace, seq: int) -> AsyncIterator[bytes]:
    """Messages whenever the page would look different, then `event: end`. Holds no connection between looks."""
    shown = ""

    def look() -> tuple[Snapshot, str]:
        found = watch.look(seq)
        return found, found.state()

    with listener.waiting(watch.job_id) as news:
        while True:
            news.clear()
            found, state = await pace.take(look)
            if state != shown or found.lines:
                shown = state
                yield format_sse_event(id=str(found.seq), data_str=_one_event(found.message(state)))
            more, seq = found.seq > seq, found.seq
            if found.settled and not more:
                yield format_sse_event(event="end", data_str="{}")
                return
            while not more and not await woken(news, PING_seconds if listener.connected else POLL_seconds):
                yield KEEPALIVE_COMMENT
                if not (listener.connected and pace.is_busy):
                    break  # the page's clocks and bars go on, unless others have news
            await asyncio.sleep(TABS[watch.tab].breath_seconds)


def _one_event(html: str) -> str:
    """A lone carriage return in somebody's text would end a line of the stream."""
    return html.replace("\r", "&#13;")
