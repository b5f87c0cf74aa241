"""What the database tells: one LISTEN connection a process, everyone in it who waits for a job, and who else asked."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator

import psycopg
import structlog

from api.store import events
from api.store.session import NOTICE_A_DEAD_PEER

_log = structlog.get_logger("lathe.listener")
_RECONNECT_seconds = 1.0


class Listener:
    """Wakes waiters when the database says that their job has news. `connected` is False while it cannot.

    A network that swallows everything is noticed within half a minute.
    """

    def __init__(self, database_url: str) -> None:
        self.connected = False
        self._database_url = database_url
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._called: dict[str, Callable[[], None]] = {}

    def call(self, channel: str, heard: Callable[[], None]) -> None:
        """Call `heard` at each message on the channel, and whenever some may have been missed."""
        self._called[channel] = heard

    @contextlib.contextmanager
    def waiting(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set at each news of the job; clear it, then read the database, then wait."""
        news = asyncio.Event()
        self._waiters[job_id].add(news)
        try:
            yield news
        finally:
            self._waiters[job_id].discard(news)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Listens in the background as long as the block lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                _log.warning("listener_lost", error=type(error).__name__)
            finally:
                self.connected = False
            await asyncio.sleep(_RECONNECT_seconds)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._database_url, autocommit=True, connect_timeout=5, **NOTICE_A_DEAD_PEER
        )
        async with connection:
            for channel in (events.CHANNEL, *self._called):
                await connection.execute(f"LISTEN {channel}".encode())
            self._catch_up()
            self.connected = True
            # Leaving the generator open would block the connection's exit for ever.
            async with contextlib.aclosing(connection.notifies()) as notifications:
                async for notification in notifications:
                    self._heard(notification.channel, notification.payload)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == events.CHANNEL:
            self._wake(payload)
        else:
            self._called[channel]()

    def _wake(self, job_id: str) -> None:
        for news in self._waiters.get(job_id, ()):
            news.set()

    def _catch_up(self) -> None:
        """After a time without ears, everyone looks for himself."""
        for job_id in self._waiters:
            self._wake(job_id)
        for heard in self._called.values():
            heard()
