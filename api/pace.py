"""What pages that follow jobs may take of a process together: the rest is for requests."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")

SHARE = 0.15
"""Of one processor. A look at a running job takes 5 to 10 ms: a page alone never waits, 500 pages share 20 a second."""


class Pace:
    """One look at a time, in the order of asking, each followed by a rest that keeps their share of the processor."""

    def __init__(self, share: float = SHARE) -> None:
        self._rest_per_second = 1 / share - 1
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    @property
    def is_busy(self) -> bool:
        """Somebody looks, or rests, now: what can wait should."""
        return self._turn.locked() or time.monotonic() < self._free_at

    async def take(self, look: Callable[[], T]) -> T:
        """What `look` finds, in a thread, when it is its turn."""
        async with self._turn:
            await asyncio.sleep(self._free_at - time.monotonic())
            found, processor_seconds = await run_in_threadpool(_timed, look)
            self.rest(processor_seconds * self._rest_per_second)
        return found

    def rest(self, seconds: float) -> None:
        """Nobody looks for so long from now."""
        self._free_at = time.monotonic() + seconds


def _timed(look: Callable[[], T]) -> tuple[T, float]:
    """With the thread's own seconds: those that it waited for a processor are not its doing."""
    start = time.thread_time()
    found = look()
    return found, time.thread_time() - start
