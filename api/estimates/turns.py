"""Who may have an estimate made now: each waits for the Hub in a thread, and threads are what all tenants share."""

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from api.errors import ServiceError, TooManyRequests, Unavailable

T = TypeVar("T")

THREADS = 4
"""Of their own: in those that every route shares, a slow Hub would stop every tenant."""
MOST_of_a_project = 2
MOST = 12
"""At work or in line."""
AGAIN_seconds = 5


class Turns:
    """Runs few at a time, and turns away those that would wait for long."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(THREADS)
        self._asking = Counter[str]()

    async def run(self, project_id: str, work: Callable[[], T]) -> T:
        """Do the work in a thread. Raises `TooManyRequests` or `Unavailable`, with the seconds to wait."""
        if self._asking[project_id] >= MOST_of_a_project:
            raise _later(TooManyRequests(f"{MOST_of_a_project} estimates of this project are being made", remedy=_WAIT))
        if self._asking.total() >= MOST:
            raise _later(Unavailable(f"{MOST} estimates are being made", remedy=_WAIT))
        self._asking[project_id] += 1
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._asking[project_id] -= 1
            if not self._asking[project_id]:
                del self._asking[project_id]


_WAIT = "wait as Retry-After says"


def _later(error: ServiceError) -> ServiceError:
    error.headers = {"Retry-After": str(AGAIN_seconds)}
    return error
