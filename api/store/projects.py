"""Rows of projects: tenants, their limits, and what they use of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from api.ids import new_id
from api.store.clock import in_seconds
from api.store.models import ACTIVE, Artifact, Attempt, Job, Project

GPU_WINDOW_seconds = 30 * 24 * 3600
LIMITS = ("max_running", "max_unfinished", "max_storage_bytes", "max_gpu_seconds")


@dataclass(frozen=True)
class Usage:
    """What a project has in hand."""

    unfinished: int
    """Jobs that are not over."""
    storage_bytes: int
    """Bytes of its artifacts."""
    gpu_seconds: float
    """In the last 30 days."""


def ensure(session: Session, name: str) -> Project:
    """The project of that name, made when there is none."""
    return (
        _named(session, name)
        or session.scalars(insert(Project).values(id=new_id("prj"), name=name).returning(Project)).one()
    )


def everyone(session: Session) -> Sequence[Project]:
    """All projects, by name."""
    return session.scalars(select(Project).order_by(Project.name)).all()


def hold(session: Session, project_id: str) -> Project:
    """The project, its row locked until the commit: counting against a limit and acting on it are then one step.

    Rows that merely refer to the project can still be inserted by others.
    """
    statement = select(Project).where(Project.id == project_id).with_for_update(key_share=True)
    return session.scalars(statement.execution_options(populate_existing=True)).one()


def is_full(session: Session, project_id: str) -> bool:
    """Whether as many of its jobs are held as may be at one time."""
    held = select(func.count()).where(Job.project_id == project_id, Job.status.in_(ACTIVE)).scalar_subquery()
    return bool(session.scalar(select(held >= Project.max_running).where(Project.id == project_id)))


def get(session: Session, project_id: str) -> Project:
    """The project of a caller."""
    return session.get_one(Project, project_id, populate_existing=True)


def limit(session: Session, name: str, **limits: int | None) -> bool:
    """Set limits (see `LIMITS`); False when there is no project of that name."""
    statement = update(Project).where(Project.name == name).values(**limits).returning(Project.id)
    return session.scalar(statement) is not None


def usage(session: Session, project_id: str) -> Usage:
    """What counts against the limits, now."""
    unfinished = select(func.count()).where(Job.project_id == project_id, Job.finished_at.is_(None))
    storage = select(func.coalesce(func.sum(Artifact.bytes), 0)).join(Job).where(Job.project_id == project_id)
    end = func.coalesce(Attempt.finished_at, func.now())
    spent = func.extract("epoch", end - Attempt.started_at) * Attempt.gpus
    recent = (Job.project_id == project_id, end > in_seconds(-GPU_WINDOW_seconds))
    gpu_seconds = select(func.coalesce(func.sum(spent), 0)).select_from(Attempt).join(Job).where(*recent)
    row = session.execute(
        select(unfinished.scalar_subquery(), storage.scalar_subquery(), gpu_seconds.scalar_subquery())
    ).one()
    return Usage(int(row[0]), int(row[1]), float(row[2]))


def _named(session: Session, name: str) -> Project | None:
    return session.scalars(select(Project).where(Project.name == name)).one_or_none()
