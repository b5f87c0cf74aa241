"""What a project's webhook receivers are told: written with the change that it tells of, in its transaction."""

from typing import Any

from sqlalchemy.orm import Session

from api.store import clock, webhook_messages
from api.store.models import Job, WebhookMessage
from lathe.webhook_models import WebhookMessageType

LONGEST_text = 500
"""Characters of a failure's texts: a message stays below 20 kB, and its receiver gets the job for the rest."""


def announce(
    session: Session, job: Job, type: WebhookMessageType, *, stage: str | None = None, sequence: int | None = None
) -> None:
    """Tell the receivers that want this type; one look into the database where there is none.

    `sequence` orders what may arrive in any order: the number of the event that caused it, by default the last one.
    """
    endpoint_ids = webhook_messages.receivers(session, job.project_id, type)
    if not endpoint_ids:
        return
    data = {
        "job_id": job.id,
        "name": job.recipe.get("name"),
        "status": job.status,
        "run_number": job.run_number,
        "sequence": job.last_seq if sequence is None else sequence,
        "stage": stage,
        "failure": _short(job.failure),
        "artifact_digest": job.artifact_digest,
        "publish": {"status": job.publish_status, "url": job.publish_url, "failure": _short(job.publish_failure)},
    }
    payload = _payload(session, type, data)
    for endpoint_id in endpoint_ids:
        webhook_messages.add(session, endpoint_id, type, payload, job.id)


def announce_failure(session: Session, job: Job, failure: dict[str, Any]) -> None:
    """Tell of a job that failed: in a stage, perhaps at a gate."""
    stage = failure["stage"] or None
    if failure["kind"] == "quality_gate":
        announce(session, job, "gate.failed", stage=stage)
    if stage:
        announce(session, job, "stage.failed", stage=stage)
    announce(session, job, "job.failed", stage=stage)


def announce_test(session: Session, endpoint_id: str) -> WebhookMessage:
    """A message that tells of nothing, for trying a receiver out, whatever types it wants."""
    payload = _payload(session, "webhook.test", {"endpoint_id": endpoint_id})
    return webhook_messages.add(session, endpoint_id, "webhook.test", payload, None)


def _payload(session: Session, type: WebhookMessageType, data: dict[str, Any]) -> dict[str, Any]:
    return {"type": type, "timestamp": clock.now(session).isoformat().replace("+00:00", "Z"), "data": data}


def _short(failure: dict[str, Any] | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {name: value[:LONGEST_text] if isinstance(value, str) else value for name, value in failure.items()}
