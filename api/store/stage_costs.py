"""Rows of what finished stages took, which estimates learn from. They outlive their jobs and name no tenant."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.store.models import StageCost
from optcore.estimate.document import StageCostSeen

KEPT = 30
"""Of each kind of stage on each kind of machine: engines and drivers change, and so does what a stage takes."""

_rank = func.row_number().over(partition_by=(StageCost.machine, StageCost.kind), order_by=StageCost.id.desc())
_RANKED = select(StageCost.id, _rank.label("rank")).subquery()


def remember(session: Session, seen: StageCostSeen) -> None:
    """Add a finished stage."""
    session.add(StageCost(**seen.model_dump()))


def recent(session: Session) -> Sequence[StageCostSeen]:
    """The newest of each kind on each machine."""
    newest = select(_RANKED.c.id).where(_RANKED.c.rank <= KEPT)
    columns = (getattr(StageCost, name) for name in StageCostSeen.model_fields)
    rows = session.execute(select(*columns).where(StageCost.id.in_(newest)).order_by(StageCost.id))
    return [StageCostSeen.model_validate(row) for row in rows.mappings()]


def forget_old(session: Session) -> int:
    """All but the newest of each kind on each machine."""
    old = select(_RANKED.c.id).where(_RANKED.c.rank > KEPT)
    statement = delete(StageCost).where(StageCost.id.in_(old)).returning(StageCost.id)
    return len(session.scalars(statement.execution_options(synchronize_session=False)).all())
