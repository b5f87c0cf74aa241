"""What an owner does to a job: submit it, ask for its end."""

from sqlalchemy import func
from sqlalchemy.orm import Session

from api.errors import Conflict
from api.ids import new_id
from api.lifecycle.transitions import move, to_cancelled
from api.store import events, jobs, outbox
from api.store.models import Job
from optcore.recipe import Recipe


def submit(session: Session, owner_id: str, recipe: Recipe) -> Job:
    """A queued job with its first event, and the announcement that wakes a worker."""
    job = jobs.create(
        session,
        id=new_id("job"),
        owner_id=owner_id,
        recipe=recipe.model_dump(mode="json"),
        digest=recipe.digest,
        last_seq=1,
    )
    events.append(session, job.id, 1, [("job.queued", {"reason": "submitted"})])
    outbox.add(session, "run_job", {"job_id": job.id})
    return job


def request_cancel(session: Session, owner_id: str, job_id: str) -> Job:
    """End a queued job at once, a running one when its worker hears of it; asking again changes nothing.

    Raises `NotFound`, and `Conflict` when the job succeeded or failed.
    """
    job = jobs.get(session, owner_id, job_id, lock=True)
    if job.status in {"succeeded", "failed"}:
        raise Conflict(f"the job has {job.status} already", remedy="a finished job stays as it is; submit a new one")
    if job.status == "queued":
        job = to_cancelled(session, job) or job
    elif job.status == "running":
        job = move(session, job_id, "cancelling", data={}, cancel_requested_at=func.now()) or job
    return job
