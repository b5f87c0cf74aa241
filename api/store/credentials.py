"""Hub tokens by owner and name. They go in, and only a worker takes them out."""

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.models import Credential
from api.vault import Vault


def put(session: Session, vault: Vault, owner_id: str, name: str, token: str) -> Credential:
    """Store or replace a token."""
    sealed = vault.seal(token, _place(owner_id, name))
    statement = insert(Credential).values(owner_id=owner_id, name=name, sealed_token=sealed)
    changed = {"sealed_token": sealed, "updated_at": func.now()}
    upsert = statement.on_conflict_do_update(index_elements=["owner_id", "name"], set_=changed)
    return session.scalars(upsert.returning(Credential).execution_options(populate_existing=True)).one()


def token(session: Session, vault: Vault, owner_id: str, name: str) -> str | None:
    """The token itself, for the publisher and the downloader; None when there is none of that name."""
    row = session.get(Credential, (owner_id, name), populate_existing=True)
    return vault.open(row.sealed_token, _place(owner_id, name)) if row else None


def known(session: Session, owner_id: str, name: str) -> bool:
    """Whether the owner stored a token under that name."""
    return bool(session.scalar(select(exists().where(Credential.owner_id == owner_id, Credential.name == name))))


def of(session: Session, owner_id: str) -> Sequence[Credential]:
    """The owner's credentials, by name."""
    return session.scalars(select(Credential).where(Credential.owner_id == owner_id).order_by(Credential.name)).all()


def remove(session: Session, owner_id: str, name: str) -> bool:
    """Forget a token; False when there was none."""
    statement = delete(Credential).where(Credential.owner_id == owner_id, Credential.name == name)
    return session.execute(statement.returning(Credential.name)).first() is not None


def _place(owner_id: str, name: str) -> str:
    return f"credential/{owner_id}/{name}"
