"""The line of queued jobs: who is next, and who is kept waiting by what."""

from collections.abc import Collection, Sequence

from sqlalchemy import Subquery, func, select
from sqlalchemy.orm import Session

from api.store.models import ACTIVE, Job, Project
from api.store.workers import Capacity, fits_one_that_is_there

COUNTED = 1000
"""Jobs at the head of the line that are counted: behind them an exact place tells nobody anything."""


def first_in_line(session: Session, worker: Capacity, but: Collection[str] = ()) -> Job | None:
    """The queued job that a worker should take, locked, leaving out the projects in `but`; None when there is none.

    Rows that another worker is about to take are passed over.
    """
    held = _held_by_project()
    statement = (
        select(Job)
        .outerjoin(held, held.c.project_id == Job.project_id)
        .where(Job.status == "queued", Job.not_before <= func.now(), worker.fits, Job.project_id.not_in(list(but)))
        .order_by(Job.priority.desc(), func.coalesce(held.c.n, 0), Job.queued_at, Job.id)
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    )
    return session.scalars(statement.execution_options(populate_existing=True)).one_or_none()


def places_in_line(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """How many queued jobs come before each of these that is queued, by priority and then by time; at most `COUNTED`.

    One walk along the head of the line's index, however many are asked for and however long the line is.
    """
    order = Job.priority.desc(), Job.queued_at, Job.id
    place = func.row_number().over(order_by=order) - 1
    head = select(Job.id, place.label("place")).where(Job.status == "queued").order_by(*order).limit(COUNTED).subquery()
    queued = Job.id.in_(job_ids), Job.status == "queued"
    rows = session.execute(
        select(Job.id, func.coalesce(head.c.place, COUNTED)).outerjoin(head, head.c.id == Job.id).where(*queued)
    )
    return {row[0]: row[1] for row in rows}


def with_a_worker(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Those of the jobs that a worker which is there can run."""
    return set(session.scalars(select(Job.id).where(Job.id.in_(job_ids), fits_one_that_is_there())))


def not_yet_due(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Those of the jobs that rest after a loss."""
    return set(session.scalars(select(Job.id).where(Job.id.in_(job_ids), Job.not_before > func.now())))


def _held_by_project() -> Subquery:
    return (
        select(Job.project_id, func.count().label("n"))
        .where(Job.status.in_(ACTIVE))
        .group_by(Job.project_id)
        .subquery("held")
    )


def count_held(session: Session, project_id: str) -> int:
    """How many of a project's jobs workers hold."""
    statement = select(func.count()).where(Job.project_id == project_id, Job.status.in_(ACTIVE))
    return session.scalar(statement) or 0


def held_back(session: Session, project_id: str, but: str) -> str | None:
    """A queued job of a project that has a limit of running ones."""
    limited = select(Project.id).where(Project.id == project_id, Project.max_running.is_not(None))
    statement = select(Job.id).where(Job.project_id.in_(limited), Job.status == "queued", Job.id != but)
    return session.scalar(statement.order_by(Job.priority.desc(), Job.queued_at).limit(1))
