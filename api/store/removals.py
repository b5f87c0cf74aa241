"""Rows of removals: what may go from the artifact store, and since when."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.clock import in_seconds
from api.store.models import Removal


def add(session: Session, prefix: str) -> None:
    """Have the files below a prefix removed, some time after this transaction is committed."""
    session.execute(insert(Removal).values(prefix=prefix).on_conflict_do_nothing())


def due(session: Session, delay_seconds: float, limit: int = 100) -> Sequence[str]:
    """Prefixes that have waited for so long, the longest first."""
    statement = select(Removal.prefix).where(Removal.created_at <= in_seconds(-delay_seconds))
    return session.scalars(statement.order_by(Removal.created_at).limit(limit)).all()


def forget(session: Session, prefix: str) -> None:
    """The files are gone."""
    session.execute(delete(Removal).where(Removal.prefix == prefix))


def put_off(session: Session, prefix: str) -> None:
    """The files could not be removed: others come first."""
    session.execute(update(Removal).where(Removal.prefix == prefix).values(created_at=func.now()))
