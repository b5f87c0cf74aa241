"""Rows as the wire models that clients see."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel

from api.store import models as rows
from lathe import models as wire
from lathe.models import TERMINAL
from optcore.errors import Failure
from optcore.recipe import Recipe

W = TypeVar("W", bound=BaseModel)


def job(row: rows.Job, stages: Sequence[rows.Stage]) -> wire.Job:
    """A job with its stages."""
    recipe = Recipe.model_validate(row.recipe)
    return wire.Job(
        id=row.id,
        name=recipe.name,
        status=row.status,
        is_terminal=row.status in TERMINAL,
        recipe=recipe,
        resolved=row.resolved,
        attempt=row.attempt,
        stages=tuple(stage(each) for each in stages if each.job_id == row.id),
        failure=_failure(row.failure),
        artifact_digest=row.artifact_digest,
        publish=wire.PublishState(
            status=row.publish_status,
            url=row.publish_url,
            commit=row.publish_commit,
            failure=_failure(row.publish_failure),
        ),
        metadata=dict(recipe.metadata),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def stage(row: rows.Stage) -> wire.Stage:
    """A stage."""
    return wire.Stage.model_validate(row, from_attributes=True)


def event(row: rows.Event) -> wire.JobEvent:
    """A line of history."""
    return wire.JobEvent.model_validate(row, from_attributes=True)


def artifact(row: rows.Artifact) -> wire.Artifact:
    """A file."""
    return wire.Artifact.model_validate(row, from_attributes=True)


def endpoint(row: rows.WebhookEndpoint, secret: str | None = None) -> wire.WebhookEndpoint:
    """A receiver; with its secret only in the answer to its making."""
    return wire.WebhookEndpoint(
        id=row.id,
        url=row.url,
        events=tuple(row.events),
        secret=secret,
        created_at=row.created_at,
    )


def credential(row: rows.Credential) -> wire.Credential:
    """The name of a token, never the token."""
    return wire.Credential.model_validate(row, from_attributes=True)


def page(data: Sequence[W], ids: Sequence[str], *, has_more: bool = False) -> wire.Page[W]:
    """A page of a list."""
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return wire.Page(data=tuple(data), has_more=has_more, first_id=first, last_id=last)


def _failure(data: object) -> Failure | None:
    return None if data is None else Failure.model_validate(data)
