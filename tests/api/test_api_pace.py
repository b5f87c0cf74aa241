"""Live pages take turns, and leave most of the process to requests."""

import time
from pathlib import Path

import anyio
import pytest
from fastapi.sse import KEEPALIVE_COMMENT

from api import lifecycle
from api.auth import Caller
from api.dashboard import live
from api.dashboard.snapshot import Snapshot, Watch
from api.files import open_store
from api.listener import Listener
from api.pace import Pace
from api.settings import Settings
from api.store.session import Sessions
from optcore.recipe import Recipe

OWNER = "acme"
VIEWER = Caller(project_id=OWNER, key_id="key", project_name=OWNER, scopes=frozenset({"jobs:read"}))


def _work(seconds: float) -> float:
    start = time.thread_time()
    while (used := time.thread_time() - start) < seconds:
        pass
    return used


def test_looks_together_use_their_share_of_the_processor() -> None:
    async def walk() -> list[float]:
        pace, used = Pace(share=0.2), list[float]()

        async def look(_number: int) -> None:
            used.append(await pace.take(lambda: _work(0.01)))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(look, number)
        return used

    start = time.monotonic()
    used = anyio.run(walk)
    # After the last one nobody rests.
    assert time.monotonic() - start >= sum(used[:-1]) / 0.2 + used[-1]


def test_who_asks_first_looks_first_and_a_look_that_fails_ends_its_turn() -> None:
    seen: list[int] = []

    async def walk() -> None:
        pace = Pace(share=0.5)

        def fail() -> None:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await pace.take(fail)
        assert not pace.is_busy
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(pace.take, lambda number=number: seen.append(number))
                await anyio.lowlevel.checkpoint()
            assert pace.is_busy

    anyio.run(walk)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.integration
def test_a_silent_page_waits_while_others_look_and_news_does_not(
    settings: Settings, sessions: Sessions, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PING_seconds", 0.05)
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, OWNER, recipe).id
    looks: list[int] = []

    class Counted(Watch):
        def look(self, after: int | None = None) -> Snapshot:
            looks.append(len(looks))
            return super().look(after)

    def cancel() -> None:
        with sessions.begin() as session:
            lifecycle.request_cancel(session, OWNER, job_id)

    async def walk() -> None:
        listener, pace = Listener(settings.database_url), Pace()
        stream = live.follow(Counted(sessions, open_store(settings), settings, VIEWER, job_id), listener, pace, 0)
        async with listener.running():
            with anyio.fail_after(20):
                while not listener.connected:
                    await anyio.sleep(0.01)
                assert b"Submitted" in await anext(stream)
                while await anext(stream) != KEEPALIVE_COMMENT:
                    pass
                pace.rest(60)
                before = len(looks)
                for _ in range(5):
                    assert await anext(stream) == KEEPALIVE_COMMENT
                assert len(looks) == before
                pace.rest(0)
                await anyio.to_thread.run_sync(cancel)
                rest = b"".join([message async for message in stream])
        assert b"Cancelled" in rest
        assert rest.endswith(b"event: end\ndata: {}\n\n")

    anyio.run(walk)
