"""Why queued jobs are still waiting, in words for their owner."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from api.store import projects, queue
from api.store.models import Job
from lathe.models import Waiting


def reasons(session: Session, rows: Sequence[Job]) -> Mapping[str, Waiting]:
    """By job id, for those of the rows (of one project) that are queued."""
    queued = [row for row in rows if row.status == "queued"]
    if not queued:
        return {}
    ids = [row.id for row in queued]
    places, served = queue.places_in_line(session, ids), queue.with_a_worker(session, ids)
    full = projects.is_full(session, queued[0].project_id)
    resting = queue.not_yet_due(session, ids)
    return {row.id: _reason(row, places.get(row.id, 0), row.id in served, full, row.id in resting) for row in queued}


def _reason(job: Job, ahead: int, served: bool, full: bool, resting: bool) -> Waiting:
    if resting:
        message = f"attempt {job.attempt} was lost; the next one begins at {job.not_before:%H:%M:%S} UTC"
        return Waiting(reason="after_loss", message=message, ahead=ahead)
    if not served:
        return Waiting(reason="no_worker", message=f"no worker {_needs(job)} is there now", ahead=ahead)
    if full:
        message = "as many jobs of the project are running as it may run at one time"
        return Waiting(reason="project_limit", message=message, ahead=ahead)
    return Waiting(reason="in_line", message=_line(ahead), ahead=ahead)


def _line(ahead: int) -> str:
    if not ahead:
        return "the next worker that is free takes it"
    return f"{ahead} jobs come first" if ahead < queue.COUNTED else f"{queue.COUNTED} jobs or more come first"


def _needs(job: Job) -> str:
    parts = [
        f"with a GPU named {job.gpu_kind!r}" if job.gpu_kind else "",
        f"with {job.gpu_memory_bytes / 1024**3:g} GiB on each GPU" if job.gpu_memory_bytes else "",
    ]
    said = " and ".join(part for part in parts if part)
    return said or (f"with device {job.device!r}" if job.device else "that runs engines")
