"""What pages that follow jobs may take of a process together: the rest is for requests."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")

SHARE = 0.15
"""Of one processor. A look at a running job takes 5 to 10 ms: a page alone never waits, 500 pages share 20 a second."""
_LATEST = 1 / 8
"""Weight of the last look in what one costs."""


class Pace:
    """Gives each look a turn, in the order of asking, so far apart that together they keep their share of a processor.

    A turn is a time to begin, by what looks cost lately: one that hangs, on a store that is away, keeps nobody waiting.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._free_at = 0.0
        self._cost_seconds = 0.01

    @property
    def is_busy(self) -> bool:
        """Others would wait for a turn now: what can wait should."""
        return time.monotonic() < self._free_at

    async def take(self, look: Callable[[], T]) -> T:
        """What `look` finds, in a thread, when it is its turn."""
        now = time.monotonic()
        turn = max(now, self._free_at)
        self._free_at = turn + self._cost_seconds / self._share
        await asyncio.sleep(turn - now)
        found, processor_seconds = await run_in_threadpool(_timed, look)
        self._cost_seconds += (processor_seconds - self._cost_seconds) * _LATEST
        return found


def _timed(look: Callable[[], T]) -> tuple[T, float]:
    """With the thread's own seconds: those that it waited for a processor are not its doing."""
    start = time.thread_time()
    found = look()
    return found, time.thread_time() - start
