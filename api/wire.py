"""Rows as the wire models that clients see."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json

from api.store import models as rows
from api.store.metrics import Bucket
from api.store.projects import LIMITS, Usage
from api.store.workers import Seen
from lathe import models as wire
from lathe import webhook_models
from lathe.models import TERMINAL
from optcore.errors import Failure
from optcore.recipe import Recipe

_COLUMNS = Bucket._fields[2:]

W = TypeVar("W", bound=BaseModel)


def job(
    row: rows.Job,
    stages: Sequence[rows.Stage],
    *,
    waiting: wire.Waiting | None = None,
    cost: wire.Money | None = None,
    attempts: Sequence[rows.Attempt] | None = None,
    artifacts: Sequence[rows.Artifact] | None = None,
) -> wire.Job:
    """A job with its stages, and what else was asked for."""
    recipe = Recipe.model_validate(row.recipe)
    return wire.Job(
        id=row.id,
        name=recipe.name,
        status=row.status,
        is_terminal=row.status in TERMINAL,
        recipe=recipe,
        resolved=row.resolved,
        run_number=row.run_number,
        attempt=row.attempt,
        waiting=waiting,
        cost=cost,
        stages=tuple(stage(each) for each in stages if each.job_id == row.id),
        failure=_failure(row.failure),
        artifact_digest=row.artifact_digest,
        publish=wire.PublishState(
            status=row.publish_status,
            url=row.publish_url,
            commit=row.publish_commit,
            failure=_failure(row.publish_failure),
        ),
        attempts=None if attempts is None else tuple(map(attempt, attempts)),
        artifacts=None if artifacts is None else tuple(map(artifact, artifacts)),
        metadata=dict(recipe.metadata),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        run_seconds=row.run_seconds,
        claimed_at=row.claimed_at if row.worker_id else None,
    )


def queued(job_id: str, document: Mapping[str, Any], created_at: datetime) -> str:
    """A job in the moment in which it was submitted, as JSON: nothing has happened to it yet.

    Made from the recipe's document, which is at hand: to write the models once more costs more than to check them.
    """
    own = {"id": job_id, "name": document["name"], "recipe": document, "metadata": document["metadata"]}
    return to_json({**_queued(), **own, "created_at": created_at}).decode()


@cache
def _queued() -> dict[str, Any]:
    unset = ("name", "recipe", "resolved", "failure", "artifact_digest", "created_at", "started_at", "finished_at")
    fields: dict[str, Any] = {**dict.fromkeys(unset), "id": "", "status": "queued", "is_terminal": False}
    fields |= {"attempt": 0, "stages": (), "metadata": {}, "publish": wire.PublishState(status="not_requested")}
    return wire.Job.model_construct(**fields).model_dump(mode="json", warnings=False)


def stage(row: rows.Stage) -> wire.Stage:
    """A stage."""
    return wire.Stage.model_validate(row, from_attributes=True)


def attempt(row: rows.Attempt) -> wire.Attempt:
    """One claim."""
    return wire.Attempt.model_validate(row, from_attributes=True)


def log_chunk(row: rows.LogChunk) -> wire.LogChunk:
    """A piece of a log."""
    return wire.LogChunk.model_validate(row, from_attributes=True)


def curves(buckets: Iterable[Bucket]) -> list[wire.MetricCurve]:
    """Curves from their buckets, which come in order."""
    found = []
    for (stage, name), group in groupby(buckets, key=lambda each: each[:2]):
        columns = zip(*(each[2:] for each in group), strict=True)
        found.append(wire.MetricCurve(stage=stage, name=name, **dict(zip(_COLUMNS, columns, strict=True))))
    return found


def key(row: rows.ApiKey, text: str | None = None) -> wire.ApiKey:
    """An API key; with its text only in the answer to its making."""
    return wire.ApiKey.model_validate(row, from_attributes=True).model_copy(update={"key": text})


def project(row: rows.Project, used: Usage) -> wire.Project:
    """A project and what it uses."""
    limits = {name: getattr(row, name) for name in LIMITS}
    return wire.Project(id=row.id, name=row.name, **limits, **asdict(used))


def audit_entry(row: rows.AuditEntry) -> wire.AuditEntry:
    """A line of the audit log."""
    return wire.AuditEntry.model_validate(row, from_attributes=True)


def event(row: rows.Event) -> wire.JobEvent:
    """A line of history."""
    return wire.JobEvent.model_validate(row, from_attributes=True)


def artifact(row: rows.Artifact) -> wire.Artifact:
    """A file."""
    return wire.Artifact.model_validate(row, from_attributes=True)


def endpoint(row: rows.WebhookEndpoint, secret: str | None = None) -> webhook_models.WebhookEndpoint:
    """A receiver; with its secret only in the answer that makes one."""
    known = webhook_models.WebhookEndpoint.model_validate(row, from_attributes=True)
    return known.model_copy(update={"secret": secret, "enabled": row.disabled_at is None})


def webhook_message(row: rows.WebhookMessage) -> webhook_models.WebhookMessage:
    """A message to a receiver."""
    return webhook_models.WebhookMessage.model_validate(row, from_attributes=True)


def webhook_delivery(row: rows.WebhookDelivery, message: rows.WebhookMessage) -> webhook_models.WebhookDelivery:
    """An attempt to deliver a message."""
    return webhook_models.WebhookDelivery(
        message_id=message.id,
        message_status=message.status,
        type=message.type,
        job_id=message.job_id,
        attempt=row.attempt,
        status_code=row.status_code,
        error=row.error,
        seconds=row.seconds,
        at=row.at,
    )


def credential(row: rows.Credential) -> wire.Credential:
    """The name of a token, never the token."""
    return wire.Credential.model_validate(row, from_attributes=True)


def worker(seen: Seen, project_id: str) -> wire.WorkerInfo:
    """A worker, and the job that it holds where that is the project's."""
    row, (status, reason) = seen.row, _readiness(seen)
    known = {name: getattr(row, name) for name in wire.WorkerInfo.model_fields if hasattr(row, name)}
    own = seen.job_id if seen.project_id == project_id else None
    return wire.WorkerInfo(**known, status=status, reason=reason, job_id=own)


def _readiness(seen: Seen) -> tuple[str, str]:
    """Whether a worker takes jobs, and why not."""
    if seen.is_away:
        return "away", "it stopped, or cannot reach the database"
    if seen.quarantined_at is not None:
        return "quarantined", "its host lost one job after another, until an operator trusts it again"
    if seen.row.draining:
        return "draining", "it was told to stop, and ends what it does"
    if seen.row.unfit is not None:
        return "unfit", seen.row.unfit
    return ("busy" if seen.job_id is not None else "idle"), ""


def page(data: Sequence[W], ids: Sequence[str], *, has_more: bool = False) -> wire.Page[W]:
    """A page of a list."""
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return wire.Page(data=tuple(data), has_more=has_more, first_id=first, last_id=last)


def _failure(data: object) -> Failure | None:
    return None if data is None else Failure.model_validate(data)
