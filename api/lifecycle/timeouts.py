"""The limits that a recipe sets on a job's time, and what is said when one is reached."""

from typing import Any

from api.store.models import Job
from optcore.errors import Failure


def ran_too_long(job: Job) -> dict[str, Any]:
    """The failure of a run that used up `limits.max_run_seconds`."""
    return _failure(
        "run_timeout",
        f"the job has run for longer than its {job.max_run_seconds} s",
        "raise limits.max_run_seconds in a new job: stages that are finished are not run again",
    )


def waited_too_long(job: Job) -> dict[str, Any]:
    """The failure of a job that no worker took within `limits.max_queue_seconds`."""
    return _failure(
        "queue_timeout",
        f"no worker took the job within {job.max_queue_seconds} s",
        "raise limits.max_queue_seconds, ask for less hardware, or have a worker added; then retry the job",
    )


def _failure(code: str, message: str, remedy: str) -> dict[str, Any]:
    return Failure(kind="timeout", code=code, message=message, remedy=remedy).model_dump(mode="json")
