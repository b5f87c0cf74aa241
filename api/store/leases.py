"""Leases on names: who leads, for a term, on the database's clock. Losing one costs nothing but the lead."""

from sqlalchemy import case, delete, or_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.clock import in_seconds
from api.store.models import Lease


def hold(session: Session, name: str, holder: str, seconds: float) -> int | None:
    """Take a lease that is free or over, or renew our own: its term, which rises with each new holder; None if taken.

    What is done under a lease must bear a second leader: one that slept through its term wakes up and goes on.
    """
    statement = insert(Lease).values(name=name, holder=holder, until=in_seconds(seconds))
    mine = Lease.holder == holder
    renewed = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "holder": holder,
            "until": in_seconds(seconds),
            "term": case((mine, Lease.term), else_=Lease.term + 1),
        },
        where=or_(mine, Lease.until < in_seconds(0)),
    )
    return session.scalar(renewed.returning(Lease.term).execution_options(populate_existing=True))


def release(session: Session, name: str, holder: str) -> None:
    """Give a lease back before its end; another's is left alone."""
    ours = (Lease.name == name, Lease.holder == holder)
    session.execute(delete(Lease).where(*ours).execution_options(synchronize_session=False))
