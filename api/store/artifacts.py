"""Rows of artifacts: the files of a finished job."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api.errors import NotFound
from api.store.models import Artifact


@dataclass(frozen=True)
class ArtifactFile:
    """A file of the artifact store below `<job_id>/<epoch>/`."""

    path: str
    """Relative, with `/`."""
    bytes: int
    sha256: str


def add(session: Session, job_id: str, files: Iterable[ArtifactFile]) -> None:
    """Register the files of a finished run."""
    rows = [{"job_id": job_id, **asdict(file)} for file in files]
    if rows:
        session.execute(insert(Artifact), rows)


def of(session: Session, job_id: str) -> Sequence[Artifact]:
    """All files of a job, by path."""
    return session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.path)).all()


def page(session: Session, job_id: str, *, limit: int, after: str | None = None) -> Sequence[Artifact]:
    """The files of a job by path, from behind `after`."""
    statement = select(Artifact).where(Artifact.job_id == job_id)
    if after is not None:
        statement = statement.where(Artifact.path > after)
    return session.scalars(statement.order_by(Artifact.path).limit(limit)).all()


def find(session: Session, job_id: str, path: str) -> Artifact | None:
    """One registered file, if there is one of that path."""
    return session.get(Artifact, (job_id, path)) if "\x00" not in path else None


def get(session: Session, job_id: str, path: str) -> Artifact:
    """One registered file. Raises `NotFound`: a path that is not in the list is never looked for on disk."""
    found = find(session, job_id, path)
    if found is None:
        raise NotFound("the job has no such artifact", remedy="list them with GET /v1/jobs/{id}/artifacts")
    return found
