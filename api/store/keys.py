"""API keys. The key itself is shown once and never stored."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.orm import Session

from api.ids import is_id, new_id
from api.store.clock import in_seconds
from api.store.models import ApiKey, Project
from lathe.models import SCOPES, Scope

CHANNEL = "api_keys"
"""LISTEN here: the database tells when a key was revoked, or allows something else."""
PREFIX_characters = 9
USED_EVERY_seconds = 60


def create(
    session: Session,
    project_id: str,
    *,
    name: str = "",
    scopes: Sequence[Scope] = SCOPES,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key for a project: its row, and the key."""
    key = "lk_" + secrets.token_urlsafe(32)
    statement = insert(ApiKey).values(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=key[:PREFIX_characters],
        key_sha256=_sha256(key),
        scopes=list(scopes),
        expires_at=expires_at,
    )
    return session.scalars(statement.returning(ApiKey)).one(), key


def find(session: Session, key: str) -> tuple[ApiKey, str] | None:
    """The key's row and its project's name, while the key is in use.

    The index sees only the hash of 256 random bits, so its timing tells nothing.
    """
    statement = select(ApiKey, Project.name).join(Project).where(ApiKey.key_sha256 == _sha256(key), *_in_use())
    row = session.execute(statement.execution_options(populate_existing=True)).one_or_none()
    return None if row is None else (row[0], row[1])


def is_stale(row: ApiKey) -> bool:
    """Whether its last use is not known to the minute. By this host's clock: it only saves writes."""
    return row.last_used_at is None or (datetime.now(UTC) - row.last_used_at).total_seconds() > USED_EVERY_seconds


def touch(session: Session, key_id: str) -> None:
    """It was used: written once a minute at most."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < in_seconds(-USED_EVERY_seconds))
    statement = update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=func.now())
    session.execute(statement.execution_options(synchronize_session=False))


def of(session: Session, project_id: str) -> Sequence[ApiKey]:
    """The project's keys, newest first, revoked ones too."""
    return session.scalars(select(ApiKey).where(ApiKey.project_id == project_id).order_by(ApiKey.id.desc())).all()


def revoke(session: Session, project_id: str | None, key_id: str) -> str | None:
    """Refuse the key from now on: its project; None when no such key is in use. Without a project: whoever's it is."""
    if not is_id("key", key_id):
        return None
    whose = () if project_id is None else (ApiKey.project_id == project_id,)
    statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None), *whose)
    return session.scalar(statement.values(revoked_at=func.now()).returning(ApiKey.project_id))


def _in_use() -> tuple[ColumnElement[bool], ...]:
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
