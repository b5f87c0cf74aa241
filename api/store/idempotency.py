"""Stored answers to POSTs, so that a request sent twice is done once. Kept for a day."""

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.errors import Conflict, IdempotencyMismatch
from api.store.clock import in_seconds
from api.store.models import IdempotencyKey, Job
from api.store.retention import IDEMPOTENCY_seconds


def begin(session: Session, project_id: str, route: str, key: str, body_sha256: str) -> str | None:
    """Reserve the key for this transaction, or return the sealed answer that is stored under it.

    A second request with the key waits here for the first one's commit. Raises `IdempotencyMismatch` on another body.
    """
    statement = insert(IdempotencyKey).values(project_id=project_id, route=route, key=key, body_sha256=body_sha256)
    over = IdempotencyKey.created_at < in_seconds(-IDEMPOTENCY_seconds)
    anew = {"body_sha256": body_sha256, "sealed_answer": None, "created_at": func.now()}
    reserved = statement.on_conflict_do_update(index_elements=["project_id", "route", "key"], set_=anew, where=over)
    if session.scalar(reserved.returning(IdempotencyKey.key)):
        return None
    return _taken(session, project_id, route, key, body_sha256).sealed_answer


def job(session: Session, project_id: str, route: str, key: str, body_sha256: str) -> Job:
    """The job that was made under a key. Raises `IdempotencyMismatch` on another body, `Conflict` if it was deleted."""
    row = _taken(session, project_id, route, key, body_sha256)
    made = row.job_id and session.get(Job, row.job_id)
    if not made:
        raise Conflict("the job that this Idempotency-Key made was deleted", remedy="send a new key for a new job")
    return made


def _taken(session: Session, project_id: str, route: str, key: str, body_sha256: str) -> IdempotencyKey:
    row = session.get_one(IdempotencyKey, (project_id, route, key))
    if row.body_sha256 != body_sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key was used with another body",
            remedy="send a new key, or the first body again",
        )
    return row


def store(session: Session, project_id: str, route: str, key: str, sealed_answer: str) -> None:
    """Keep the answer under the key that `begin` reserved."""
    reserved = (IdempotencyKey.project_id == project_id, IdempotencyKey.route == route, IdempotencyKey.key == key)
    session.execute(update(IdempotencyKey).where(*reserved).values(sealed_answer=sealed_answer))


def place(project_id: str, route: str, key: str) -> str:
    """What an answer is sealed for."""
    return f"answer/{project_id}/{route}/{key}"
