"""How often a key may ask: one window for each key, of the library `limits`.

With several API processes, `LATHE_RATE_LIMIT_STORAGE` names a Redis that they share; else each counts for itself.
A storage that does not answer lets requests through: it must not take the service down with it.
"""

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator
from typing import cast

from limits import parse
from limits.aio.storage import RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from api.errors import TooManyRequests

log = logging.getLogger(__name__)


class RateLimit:
    """Counts requests, and says no to one too many."""

    def __init__(self, rate: str, storage: str) -> None:
        """`rate` as in `1200/minute`; raises `ValueError` when it cannot be read."""
        self._rate = parse(rate)
        driver = {"implementation": "redispy"} if storage.startswith("redis") else {}
        self._counters = storage_from_string(f"async+{storage}", wrap_exceptions=True, **driver)
        self._windows = SlidingWindowCounterRateLimiter(cast("Storage", self._counters))

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Counts as long as the block lasts; then the connections of a shared storage are closed."""
        try:
            yield
        finally:
            if isinstance(self._counters, RedisStorage):
                await self._counters.bridge.storage.aclose()  # type: ignore[attr-defined]  # it is redis-py's

    async def count(self, who: str, what: str = "with this key") -> None:
        """One more of them. Raises `TooManyRequests`, with the seconds to wait."""
        if not await self._hit(who):
            raise await self._refusal(who, what)

    async def _hit(self, who: str) -> bool:
        try:
            return await self._windows.hit(self._rate, who)
        except StorageError as error:
            log.warning("rate limits are not counted: %s", error)
            return True

    async def _refusal(self, who: str, what: str) -> TooManyRequests:
        refused = TooManyRequests(f"more than {self._rate} {what}", remedy="wait as Retry-After says")
        refused.headers = {"Retry-After": str(await self._seconds_left(who))}
        return refused

    async def _seconds_left(self, who: str) -> int:
        try:
            reset = (await self._windows.get_window_stats(self._rate, who)).reset_time
        except StorageError:
            return 1
        return max(1, math.ceil(reset - time.time()))
