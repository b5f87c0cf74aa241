"""Rows of hosts: which machines lose job after job, and get no more of them until an operator has looked."""

from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.models import Attempt, Host

MAX_LOSSES = 3
"""Different jobs in a row whose attempt was lost there. One job alone may be to blame itself."""

_NOT_THE_HOST = "artifact_store_away"
_LOST = or_(
    Attempt.state == "lost",
    and_(
        Attempt.state == "failed",
        Attempt.failure["kind"].astext == "infrastructure",
        Attempt.failure["code"].astext != _NOT_THE_HOST,
    ),
)


def in_quarantine(session: Session, name: str) -> bool:
    """Whether the host gets no work."""
    return bool(session.scalar(select(Host.quarantined_at.is_not(None)).where(Host.name == name)))


def quarantined(session: Session) -> Sequence[Host]:
    """The hosts that get no work."""
    return session.scalars(select(Host).where(Host.quarantined_at.is_not(None)).order_by(Host.name)).all()


def judge(session: Session, name: str) -> bool:
    """After a loss: put the host into quarantine if its last attempts were all lost, of different jobs; True if so."""
    trusted_at = select(Host.trusted_at).where(Host.name == name).scalar_subquery()
    recent = (
        select(Attempt.job_id, _LOST.label("lost"))
        .where(Attempt.host == name, Attempt.state.in_(("succeeded", "failed", "lost")))
        .where(or_(trusted_at.is_(None), Attempt.finished_at > trusted_at))
        .order_by(Attempt.finished_at.desc())
        .limit(MAX_LOSSES)
    )
    rows = session.execute(recent).all()
    if not all(row.lost for row in rows) or len({row.job_id for row in rows}) < MAX_LOSSES:
        return False
    statement = insert(Host).values(name=name, quarantined_at=func.now())
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"quarantined_at": func.now()}))
    return True


def trust(session: Session, name: str) -> bool:
    """End a quarantine; False when there is none."""
    statement = update(Host).where(Host.name == name, Host.quarantined_at.is_not(None))
    trusted = statement.values(quarantined_at=None, trusted_at=func.now()).returning(Host.name)
    return session.scalar(trusted) is not None
