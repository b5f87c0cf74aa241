"""The audit log: who did what, when. Rows are added with the change that they tell of, in its transaction."""

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from api.store.models import AuditEntry

OPERATOR = "operator"
"""Whoever has the service's own settings, and so needs no key."""


def add(
    session: Session, project_id: str, actor: str, action: str, target: str, *, request_id: str = "", address: str = ""
) -> None:
    """Write down that `actor` did `action` (`job.cancel`) to `target` (an id or a name, never a value)."""
    values = {"project_id": project_id, "actor": actor, "action": action, "target": target}
    session.execute(insert(AuditEntry).values(**values, request_id=request_id, address=address))


def page(session: Session, project_id: str, *, limit: int, after: int | None) -> Sequence[AuditEntry]:
    """The project's entries, newest first, from below `after`."""
    statement = select(AuditEntry).where(AuditEntry.project_id == project_id)
    if after is not None:
        statement = statement.where(AuditEntry.id < after)
    return session.scalars(statement.order_by(AuditEntry.id.desc()).limit(limit)).all()
