"""The push of a finished artifact to the Hub: a retryable life of its own after the job's."""

import logging
from pathlib import Path

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import lifecycle, tracing
from api.errors import Fenced, ServiceError
from api.store import credentials
from optcore.errors import Failure, Kind, OptError
from optcore.references import Publish
from worker import hub
from worker.artifact import BadArtifact, collect
from worker.context import Context
from worker.download import at_hand
from worker.engine_process import Inbox
from worker.heartbeat import Heartbeat
from worker.hub_errors import HubBusy
from worker.hub_signing import Signer
from worker.hub_target import Memory, Numbers

log = logging.getLogger(__name__)

RENEW_seconds = 60.0


class NoCredential(OptError):
    """The recipe names a Hub credential that its owner has not stored."""

    code = "credential_missing"
    kind: Kind = "user_error"


def publish(job_id: str, context: Context) -> None:
    """Push the artifact if a push is pending. A late or doubled call does nothing."""
    with context.sessions.begin() as session:
        claim = lifecycle.claim_publish(session, job_id, context.worker_id)
    if claim is None:
        log.info("nothing to publish for %s", job_id)
        return
    ids = {"job_id": claim.job_id, "request_id": claim.request_id}
    with (
        structlog.contextvars.bound_contextvars(**ids),
        tracing.span("publish", parent=claim.traceparent, kind="consumer", attempt=claim.attempt, **ids),
    ):
        try:
            _push(claim, context)
        except Fenced as error:
            log.warning("refused: %s", error.message)


def _push(claim: lifecycle.PublishClaim, context: Context) -> None:
    def renew() -> None:
        with context.sessions.begin() as session:
            lifecycle.renew_publish(session, claim)

    inbox: Inbox = Inbox()
    with Heartbeat(renew, period_seconds=RENEW_seconds, inbox=inbox):
        try:
            published = _upload(claim, context)
        except HubBusy as error:
            return _fail(claim, context, error.failure(), error.retry_after_seconds)
        except OptError as error:
            return _fail(claim, context, error.failure())
        except ServiceError as error:
            failure = Failure(kind="internal", code=error.code, message=error.message, remedy=error.remedy)
            return _fail(claim, context, failure)
        except FileNotFoundError as error:  # it was there when the push began
            return _fail(claim, context, BadArtifact(f"a file of the artifact is gone: {error.filename}").failure())
        except (OSError, ValidationError) as error:
            log.exception("push of %s", claim.job_id)
            said = f"the artifact could not be read: {type(error).__name__}"
            return _fail(claim, context, Failure(kind="infrastructure", code="publish_broken", message=said))
    with context.sessions.begin() as session:
        lifecycle.publish_succeeded(session, claim, published.url, published.commit)


def _upload(claim: lifecycle.PublishClaim, context: Context) -> hub.Published:
    wanted = Publish.model_validate(claim.publish_to)
    with context.sessions() as session:
        token = _token(session, claim, context, wanted)

    def keep(numbers: Numbers) -> None:
        with context.sessions.begin() as session:
            lifecycle.note_pull_requests(session, claim, numbers)

    message, memory = f"Add the result of {claim.job_id}", Memory(claim.pull_requests, keep)
    with at_hand(claim, context) as folder:
        _require_the_artifact(folder, claim)
        sign = _signer(claim, context)
        return hub.publish_folder(folder, wanted, token, message=message, memory=memory, sign=sign)


def _signer(claim: lifecycle.PublishClaim, context: Context) -> Signer | None:
    key = context.settings.signing_key
    place = context.staging.place(claim.job_id, claim.epoch, "push")
    return Signer(key, place.with_name(f"{place.name}-signing")) if key else None  # swept with the place itself


def _require_the_artifact(folder: Path, claim: lifecycle.PublishClaim) -> None:
    """A folder that is absent or incomplete here must not be published as the new state of a repository."""
    if collect(folder).digest != claim.artifact_digest:
        raise BadArtifact("the output folder is not the artifact that the job ended with", remedy="run the job again")


def _token(session: Session, claim: lifecycle.PublishClaim, context: Context, wanted: Publish) -> str:
    token = credentials.token(session, context.settings.vault, claim.project_id, wanted.credential)
    if token is None:
        raise NoCredential(
            f"there is no Hub credential named {wanted.credential!r}",
            remedy="store one under that name and publish again",
            field="/publish/credential",
        )
    return token


def _fail(claim: lifecycle.PublishClaim, context: Context, failure: Failure, retry_after_seconds: float = 0) -> None:
    tracing.fail(failure.code)
    log.warning("push of %s failed: %s %s", claim.job_id, failure.code, failure.message)
    with context.sessions.begin() as session:
        lifecycle.publish_failed(session, claim, failure, retry_after_seconds=retry_after_seconds)
