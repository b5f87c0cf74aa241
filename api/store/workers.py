"""Rows of workers: which processes are there, and when each was last heard of."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.models import Worker


def beat(session: Session, worker_id: str, host: str, *, draining: bool = False) -> None:
    """The worker is alive."""
    statement = insert(Worker).values(id=worker_id, host=host, draining=draining)
    session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now(), "draining": draining})
    )


def all_of_them(session: Session) -> Sequence[Worker]:
    """Every worker ever seen, latest first."""
    return session.scalars(select(Worker).order_by(Worker.seen_at.desc())).all()
