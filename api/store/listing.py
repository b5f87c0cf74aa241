"""Lists of jobs: which ones, in which order, a page at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from api.errors import BadRequest
from api.ids import is_id
from api.store.models import Job
from api.store.models.jobs import METADATA, MODEL, NAME, TECHNIQUES
from lathe.models import TERMINAL


@dataclass(frozen=True)
class Query:
    """Which jobs of a project to list; what is absent does not matter."""

    ids: Collection[str] = ()
    statuses: Collection[str] = ()
    technique: str | None = None
    model: str | None = None
    """Repository id or local path, whole."""
    name_contains: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    oldest_first: bool = False

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """As SQL."""
        if self.ids:
            yield Job.id.in_(self.ids)
        if self.statuses:
            yield Job.status.in_(self.statuses)
        if self.technique is not None:
            yield TECHNIQUES.element.contains([self.technique])
        if self.model is not None:
            yield MODEL.element == self.model
        if self.name_contains is not None:
            yield NAME.element.like(func.lower(f"%{_escaped(self.name_contains)}%"), escape="/")
        if self.metadata:
            yield METADATA.element.contains(dict(self.metadata))
        if self.created_after is not None:
            yield Job.created_at > self.created_after
        if self.created_before is not None:
            yield Job.created_at < self.created_before


def page(
    session: Session,
    project_id: str,
    *,
    limit: int,
    query: Query | None = None,
    after: str | None = None,
    before: str | None = None,
) -> tuple[Sequence[Job], bool]:
    """Jobs in the query's order, behind `after` or just ahead of `before`; and whether there are more that way.

    Raises `BadRequest` for an unknown cursor.
    """
    query = query or Query()
    for name, cursor in (("after", after), ("before", before)):
        if cursor is not None and not (is_id("job", cursor) and _exists(session, project_id, cursor)):
            raise BadRequest("the cursor is no job of yours", remedy="pass the id of a job that is listed", field=name)
    backwards = after is None and before is not None
    rising = query.oldest_first != backwards
    statement = select(Job).where(Job.project_id == project_id, *query.conditions())
    if (cursor := before if backwards else after) is not None:
        statement = statement.where(Job.id > cursor if rising else Job.id < cursor)
    ordered = statement.order_by(Job.id.asc() if rising else Job.id.desc()).limit(limit + 1)
    found = session.scalars(ordered).all()
    rows = list(found[:limit])
    return rows[::-1] if backwards else rows, len(found) > limit


def _escaped(part: str) -> str:
    """For LIKE. Its case is PostgreSQL's to fold, as that of the names is: Python has other rules."""
    return part.replace("/", "//").replace("%", "/%").replace("_", "/_")


def count_unfinished(session: Session, project_id: str) -> int:
    """Jobs of the project that are not over: from an index that holds no others."""
    open_ones = Job.project_id == project_id, Job.status.not_in(TERMINAL)
    return session.scalar(select(func.count()).where(*open_ones)) or 0


def _exists(session: Session, project_id: str, job_id: str) -> bool:
    return bool(session.scalar(select(exists().where(Job.id == job_id, Job.project_id == project_id))))
