"""What its owner does to a job: submit it, end it, set it aside, begin it anew, throw it away."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from api import tracing
from api.errors import Conflict
from api.ids import new_id
from api.lifecycle.announcements import announce
from api.lifecycle.transitions import call_a_worker, move, to_cancelled, to_paused, waiting
from api.store import idempotency, jobs, removals, stages, submissions
from api.store.models import Job
from api.store.statements import Statements
from lathe.models import TERMINAL
from optcore.frozen import canonical_json
from optcore.recipe import Recipe

GIB = 1024**3


@dataclass(frozen=True)
class Submitted:
    """A job as it joined the queue."""

    id: str
    document: Mapping[str, Any]
    """The recipe, as plain values."""
    created_at: datetime
    inserted: submissions.Inserted | None
    """None for a job that is there since the same request came before."""


@dataclass(frozen=True)
class Origin:
    """Who submits, for the audit log, and the key under which it is done only once."""

    actor: str | None = None
    request_id: str = ""
    address: str = ""
    key: str | None = None


def submit(session: Session, project_id: str, recipe: Recipe, origin: Origin = Origin()) -> Submitted:
    """Queue a job, with its first event, the announcement that wakes a worker, and a line in the audit log.

    Done once for each idempotency key. Raises `IdempotencyMismatch` and `Conflict`.
    """
    document = recipe.model_dump(mode="json")
    values = _values(project_id, recipe, document, origin)
    inserted = submissions.insert(session, values)
    if inserted is None:
        assert origin.key is not None, "only a key that is taken prevents an insertion"
        earlier = idempotency.job(session, project_id, submissions.ROUTE, origin.key, values["digest"])
        return Submitted(earlier.id, document, earlier.created_at, None)
    if inserted.has_receiver:
        announce(session, jobs.get(session, project_id, values["id"]), "job.queued")
    return Submitted(values["id"], document, inserted.created_at, inserted)


async def submit_alone(statements: Statements, project_id: str, recipe: Recipe, origin: Origin) -> Submitted | None:
    """The same and committed, where nothing has to be checked or told besides; None, and nothing done, elsewhere."""
    document = recipe.model_dump(mode="json")
    values = _values(project_id, recipe, document, origin)
    inserted = await submissions.insert_alone(statements, values)
    return inserted and Submitted(values["id"], document, inserted.created_at, inserted)


def request_cancel(session: Session, project_id: str, job_id: str) -> Job:
    """End a waiting job at once, a running one when its worker hears of it; asking again changes nothing.

    Raises `NotFound`, and `Conflict` when the job succeeded or failed.
    """
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status in {"succeeded", "failed"}:
        raise Conflict(f"the job has {job.status} already", remedy="a finished job stays as it is; submit a new one")
    if job.status in {"queued", "paused"}:
        job = to_cancelled(session, job) or job
    elif job.status in {"running", "pausing"}:
        job = move(session, job_id, "cancelling", data={}, cancel_requested_at=func.now()) or job
    return job


def request_pause(session: Session, project_id: str, job_id: str) -> Job:
    """Set a waiting job aside at once, a running one when its worker hears of it; asking again changes nothing.

    Raises `NotFound`, and `Conflict` when the job is over or being cancelled.
    """
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status in TERMINAL or job.status == "cancelling":
        raise Conflict(f"the job is {job.status}", remedy="only a job that waits or runs can be paused")
    if job.status == "queued":
        job = to_paused(session, job) or job
    elif job.status == "running":
        job = move(session, job_id, "pausing", data={}) or job
    return job


def resume(session: Session, project_id: str, job_id: str) -> Job:
    """Queue a paused job again: finished stages and layers are kept. One that waits or runs stays as it is.

    Raises `NotFound`, and `Conflict` when the job is over, or its worker is still busy with stopping.
    """
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status in {"queued", "running"}:
        return job
    if job.status != "paused":
        remedy = "wait until it is paused" if job.status == "pausing" else "retry it, or submit a new one"
        raise Conflict(f"the job is {job.status}", remedy=remedy)
    return _queue(session, job, "resumed")


def retry(session: Session, project_id: str, job_id: str) -> Job:
    """Begin a new run of a job that failed or was cancelled: same job, same recipe, finished stages kept.

    Raises `NotFound`, and `Conflict` in any other state.
    """
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status not in {"failed", "cancelled"}:
        raise Conflict(f"the job is {job.status}", remedy="only a job that failed or was cancelled can be retried")
    stages.reopen(session, job.id)
    begun: dict[str, Any] = {
        "run_number": Job.run_number + 1,
        "losses": 0,
        "run_seconds": 0,
        "failure": None,
        "cancel_requested_at": None,
    }
    return _queue(session, job, "retried", **begun)


def delete(session: Session, project_id: str, job_id: str) -> None:
    """Forget a job that is over, its history and its artifact. Raises `NotFound`, and `Conflict` before its end."""
    job = jobs.get(session, project_id, job_id, lock=True)
    if job.status not in TERMINAL:
        raise Conflict(f"the job is {job.status}", remedy="cancel it first")
    if job.publish_status in {"pending", "uploading"}:
        raise Conflict("the job is being published", remedy="wait for the end of that")
    removals.add(session, job.id)
    jobs.remove(session, job.id)


def _queue(session: Session, job: Job, reason: str, **values: Any) -> Job:
    moved = move(session, job.id, "queued", data={"reason": reason}, **waiting(), **values)
    assert moved is not None, "the row is locked"
    call_a_worker(session, moved)
    announce(session, moved, "job.queued")
    return moved


def _values(project_id: str, recipe: Recipe, document: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    text = canonical_json(document)
    return {
        "id": new_id("job"),
        "project_id": project_id,
        "recipe": text,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
        "publish_to": document["publish"] and canonical_json(document["publish"]),
        "credential": recipe.publish and recipe.publish.credential,
        "priority": recipe.priority,
        **_needs(recipe),
        **document["limits"],
        "traceparent": tracing.traceparent(),
        **vars(origin),
    }


def _needs(recipe: Recipe) -> dict[str, Any]:
    wanted = recipe.hardware
    gpu = wanted.gpu_kind is not None or wanted.gpu_memory_gib is not None
    return {
        "device": "cuda" if gpu else None if wanted.device == "any" else wanted.device,
        "gpu_kind": wanted.gpu_kind,
        "gpu_memory_bytes": wanted.gpu_memory_gib and round(wanted.gpu_memory_gib * GIB),
    }
