"""Waiting for a job, without I/O: how long still, and what the end means."""

import math
import time
from typing import TypeVar

from lathe._retry import backoff, worth_retrying
from lathe.errors import JobCancelled, JobFailed, LatheError, WaitTimeout
from lathe.models import Job
from optcore.errors import Failure

J = TypeVar("J", bound=Job)
POLL_seconds = 1.0
LOOKS = 8
"""That may get no answer in a row before a waiting client gives up: a service that is restarted comes back."""


class Patience:
    """A deadline on the monotonic clock, and what is borne until then."""

    def __init__(self, timeout_seconds: float | None, poll_seconds: float) -> None:
        self._timeout_seconds = math.inf if timeout_seconds is None else timeout_seconds
        self._poll_seconds = poll_seconds
        self._began = time.monotonic()
        self._lost = 0

    def pause(self, job: Job) -> float:
        """Seconds until the next look at a job that still runs. Raises `WaitTimeout` past the deadline."""
        self._lost = 0
        if (left := self._left()) <= 0:
            raise WaitTimeout(job, self._timeout_seconds)
        return min(left, self._poll_seconds)

    def pause_after(self, error: LatheError) -> float:
        """The same after a look that got no answer. Raises `error` where another look would be in vain."""
        if not worth_retrying(error) or self._lost >= LOOKS or (left := self._left()) <= 0:
            raise error
        self._lost += 1
        return min(left, backoff(self._lost - 1))

    def _left(self) -> float:
        return self._began + self._timeout_seconds - time.monotonic()


def successful(job: J) -> J:
    """A job that ended well. Raises `JobFailed` or `JobCancelled`."""
    if job.status == "cancelled":
        raise JobCancelled(job, f"job {job.id} was cancelled")
    if job.status == "failed":
        unknown = Failure(kind="internal", code="internal", message=f"job {job.id} failed without saying why")
        raise JobFailed(job, job.failure or unknown)
    return job
