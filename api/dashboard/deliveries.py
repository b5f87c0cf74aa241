"""What webhook receivers were told of a job, and how they took it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from api.auth import Caller
from api.store import webhook_log

MAX_MESSAGES = 100


@dataclass(frozen=True)
class Message:
    """One message to one receiver, and its last attempt."""

    id: str
    type: str
    status: str
    """`pending`, `delivered` or `failed`."""
    host: str
    """Of the receiver: the rest of an address may hold a secret."""
    endpoint_id: str
    enabled: bool
    attempts: int
    answered: str
    """Of the last attempt."""
    seconds: float | None
    at: datetime
    """Of the last attempt; before it, when the message was made."""


def of_job(session: Session, viewer: Caller, job_id: str) -> Sequence[Message]:
    """The latest messages about the job."""
    found = []
    for message, endpoint, last in webhook_log.of_job(session, viewer.project_id, job_id, MAX_MESSAGES):
        answered = "" if last is None else str(last.status_code or last.error or "no answer")
        found.append(
            Message(
                id=message.id,
                type=message.type,
                status=message.status,
                host=urlsplit(endpoint.url).hostname or "",
                endpoint_id=endpoint.id,
                enabled=endpoint.disabled_at is None,
                attempts=message.attempts,
                answered=answered,
                seconds=None if last is None else last.seconds,
                at=last.at if last else message.created_at,
            )
        )
    return found
