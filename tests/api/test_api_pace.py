"""Live pages take turns, and leave most of the process to requests."""

import threading
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


def test_looks_keep_their_share_of_the_processor_once_their_cost_is_known() -> None:
    began: list[float] = []

    def look() -> None:
        began.append(time.monotonic())
        _work(0.02)

    async def walk() -> None:
        pace = Pace(share=0.5)
        for _ in range(32):
            await pace.take(look)

    start = time.monotonic()
    anyio.run(walk)
    # 31 turns of 40 ms, but for the first ones, whose looks were taken to cost half as much.
    assert began[-1] - start >= 1.05


def test_many_who_ask_at_once_begin_one_after_the_other() -> None:
    async def walk() -> None:
        pace, began, start = Pace(share=0.2), list[float](), time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(pace.take, lambda: began.append(time.monotonic()))
                await anyio.lowlevel.checkpoint()
            assert pace.is_busy
        assert len(began) == 8
        # Seven turns of 50 ms; each look that ends before others ask makes the turns of those an eighth shorter.
        assert max(began) - start >= 0.24

    anyio.run(walk)


def test_a_look_that_hangs_or_fails_keeps_nobody_waiting() -> None:
    go = threading.Event()

    def fail() -> None:
        raise ValueError("broken")

    async def walk() -> None:
        pace = Pace()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(pace.take, lambda: go.wait(20))
                await anyio.sleep(0.05)
                with pytest.raises(ValueError, match="broken"):
                    await pace.take(fail)
                assert await pace.take(lambda: "seen") == "seen"
                go.set()

    anyio.run(walk)


class Busy(Pace):
    """As if others asked all the time."""

    is_busy = False  # type: ignore[assignment]


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
        listener, pace = Listener(settings.database_url), Busy()
        stream = live.follow(Counted(sessions, open_store(settings), settings, VIEWER, job_id), listener, pace, 0)
        async with listener.running():
            with anyio.fail_after(20):
                while not listener.connected:
                    await anyio.sleep(0.01)
                assert b"Submitted" in await anext(stream)
                while await anext(stream) != KEEPALIVE_COMMENT:
                    pass
                pace.is_busy = True  # type: ignore[misc]
                before = len(looks)
                for _ in range(5):
                    assert await anext(stream) == KEEPALIVE_COMMENT
                assert len(looks) == before
                await anyio.to_thread.run_sync(cancel)
                rest = b"".join([message async for message in stream])
        assert b"Cancelled" in rest
        assert rest.endswith(b"event: end\ndata: {}\n\n")

    anyio.run(walk)
