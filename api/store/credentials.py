"""Hub tokens by project and name. They go in, and only a worker takes them out."""

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.models import Credential
from api.vault import Vault


def put(session: Session, vault: Vault, project_id: str, name: str, token: str) -> Credential:
    """Store or replace a token."""
    sealed = vault.seal(token, place(project_id, name))
    statement = insert(Credential).values(project_id=project_id, name=name, sealed_token=sealed)
    changed = {"sealed_token": sealed, "updated_at": func.now()}
    upsert = statement.on_conflict_do_update(index_elements=["project_id", "name"], set_=changed)
    return session.scalars(upsert.returning(Credential).execution_options(populate_existing=True)).one()


def token(session: Session, vault: Vault, project_id: str, name: str) -> str | None:
    """The token itself, for the publisher and the downloader; None when there is none of that name."""
    row = session.get(Credential, (project_id, name), populate_existing=True)
    return vault.open(row.sealed_token, place(project_id, name)) if row else None


def known(session: Session, project_id: str, name: str) -> bool:
    """Whether the project stored a token under that name."""
    return bool(session.scalar(select(exists().where(Credential.project_id == project_id, Credential.name == name))))


def of(session: Session, project_id: str) -> Sequence[Credential]:
    """The project's credentials, by name."""
    statement = select(Credential).where(Credential.project_id == project_id)
    return session.scalars(statement.order_by(Credential.name)).all()


def remove(session: Session, project_id: str, name: str) -> bool:
    """Forget a token; False when there was none."""
    statement = delete(Credential).where(Credential.project_id == project_id, Credential.name == name)
    return session.execute(statement.returning(Credential.name)).first() is not None


def place(project_id: str, name: str) -> str:
    """What a token is sealed for."""
    return f"credential/{project_id}/{name}"
