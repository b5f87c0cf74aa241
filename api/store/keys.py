"""API keys. The key itself is shown once and never stored."""

import hashlib
import hmac
import secrets

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from api.ids import new_id
from api.store.models import ApiKey


def create(session: Session, owner_id: str) -> tuple[str, str]:
    """A new key for an owner: its id, and the key."""
    key = "lk_" + secrets.token_urlsafe(32)
    key_id = new_id("key")
    session.execute(insert(ApiKey).values(id=key_id, owner_id=owner_id, key_sha256=_sha256(key)))
    return key_id, key


def owner_of(session: Session, key: str) -> str | None:
    """The owner that a key speaks for. The index sees only the hash of 256 random bits, so its timing tells nothing."""
    hashed = _sha256(key)
    row = session.scalars(select(ApiKey).where(ApiKey.key_sha256 == hashed, ApiKey.revoked_at.is_(None))).one_or_none()
    return row.owner_id if row and hmac.compare_digest(row.key_sha256, hashed) else None


def revoke(session: Session, key_id: str) -> bool:
    """Refuse the key from now on; False when there is no such key in use."""
    statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    return session.execute(statement.returning(ApiKey.id)).first() is not None


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
