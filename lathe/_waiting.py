"""Waiting for a job, without I/O: how long still, and what the end means."""

import time

from lathe.errors import JobCancelled, JobFailed, WaitTimeout
from lathe.models import Job
from optcore.errors import Failure

POLL_seconds = 1.0


class Patience:
    """A deadline on the monotonic clock."""

    def __init__(self, timeout_seconds: float | None, poll_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._poll_seconds = poll_seconds
        self._began = time.monotonic()

    def pause(self, job: Job) -> float:
        """Seconds until the next look at a job that still runs. Raises `WaitTimeout` past the deadline."""
        if self._timeout_seconds is None:
            return self._poll_seconds
        left = self._began + self._timeout_seconds - time.monotonic()
        if left <= 0:
            raise WaitTimeout(job, self._timeout_seconds)
        return min(left, self._poll_seconds)


def successful(job: Job) -> Job:
    """A job that ended well. Raises `JobFailed` or `JobCancelled`."""
    if job.status == "cancelled":
        raise JobCancelled(job, f"job {job.id} was cancelled")
    if job.status == "failed":
        unknown = Failure(kind="internal", code="internal", message=f"job {job.id} failed without saying why")
        raise JobFailed(job, job.failure or unknown)
    return job
