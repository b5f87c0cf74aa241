"""Rows of stages: what a job's steps last reported."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.store.models import Stage
from optcore.estimate.document import StageCostSeen, StageEstimate

OPEN = ("pending", "running")


def of(session: Session, job_ids: Iterable[str]) -> Sequence[Stage]:
    """The stages of jobs, in order."""
    statement = select(Stage).where(Stage.job_id.in_(list(job_ids))).order_by(Stage.job_id, Stage.position)
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def by_job(session: Session, job_ids: Iterable[str]) -> Mapping[str, Sequence[Stage]]:
    """The same of each job; none for one that is not there."""
    found: defaultdict[str, list[Stage]] = defaultdict(list)
    for stage in of(session, job_ids):
        found[stage.job_id].append(stage)
    return found


def plan(session: Session, job_id: str, names: Sequence[str]) -> None:
    """Make the list of stages exactly `names`; what is known of those that stay is kept."""
    session.execute(delete(Stage).where(Stage.job_id == job_id, Stage.name.not_in(names)))
    for position, name in enumerate(names):
        statement = insert(Stage).values(job_id=job_id, name=name, position=position)
        session.execute(statement.on_conflict_do_update(index_elements=["job_id", "name"], set_={"position": position}))


def put(session: Session, job_id: str, name: str, **values: Any) -> None:
    """Set columns of a stage; one that was never planned is added at the end."""
    position = select(func.count()).where(Stage.job_id == job_id).scalar_subquery()
    statement = insert(Stage).values(job_id=job_id, name=name, position=position, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "name"], set_=values))


def expect(session: Session, job_id: str, machine: str, estimates: Iterable[StageEstimate]) -> None:
    """Note what planned stages should take on a kind of machine."""
    for one in estimates:
        statement = update(Stage).where(Stage.job_id == job_id, Stage.name == one.stage)
        values = {"machine": machine, "estimate": one.model_dump(mode="json")}
        session.execute(statement.values(values).execution_options(synchronize_session=False))


def cost(session: Session, job_id: str, name: str) -> StageCostSeen | None:
    """What a finished stage was expected to take, beside what it took; None where nothing was expected."""
    row = session.get(Stage, (job_id, name), populate_existing=True)
    if row is None or row.estimate is None or row.machine is None or not (row.seconds and row.peak_memory_bytes):
        return None
    foreseen = StageEstimate.model_validate(row.estimate)
    if not (foreseen.raw_seconds and foreseen.raw_memory_bytes):
        return None
    return StageCostSeen(
        machine=row.machine,
        kind=foreseen.kind,
        raw_seconds=foreseen.raw_seconds,
        seconds=row.seconds,
        raw_memory_bytes=foreseen.raw_memory_bytes,
        memory_bytes=row.peak_memory_bytes,
    )


def finish(session: Session, job_id: str, name: str, key: str, *, cached: bool, **values: Any) -> bool:
    """Close a stage: whether that is news.

    One that this job itself finished before stays `succeeded`, with the seconds that it took.
    """
    if cached:
        stage = session.get(Stage, (job_id, name), populate_existing=True)
        if stage and stage.key == key and stage.seconds is not None:
            put(session, job_id, name, status="succeeded", phase=None)
            return False
    status = "cached" if cached else "succeeded"
    put(session, job_id, name, key=key, status=status, phase=None, finished_at=func.now(), **values)
    return True


def reopen(session: Session, job_id: str) -> None:
    """Make what failed or was cancelled pending again, for another run; what is finished stays."""
    statement = update(Stage).where(Stage.job_id == job_id, Stage.status.in_(("failed", "cancelled")))
    session.execute(statement.values(status="pending", phase=None).execution_options(synchronize_session=False))


def close(session: Session, job_id: str, status: str, *, only: str | None = None) -> None:
    """Give every open stage (or `only` that one) a last status."""
    statement = update(Stage).where(Stage.job_id == job_id, Stage.status.in_(OPEN))
    if only is not None:
        statement = statement.where(Stage.name == only)
    session.execute(statement.values(status=status, phase=None).execution_options(synchronize_session=False))
