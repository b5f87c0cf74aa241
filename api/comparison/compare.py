"""From the ids of jobs to their comparison."""

from collections.abc import Sequence
from typing import NamedTuple

from api import reports
from api.comparison.differences import differences
from api.comparison.front import dominating, is_measured
from api.comparison.measurements import side_by_side
from api.comparison.notices import notices
from api.comparison.subject import COMMON_MEASURES, Subject, shared_measure
from api.errors import BadRequest
from api.files import ArtifactStore
from api.store import artifacts, jobs
from api.store.session import Sessions
from lathe.comparison_models import ComparedJob, Comparison
from optcore.recipe import Recipe

MIN_JOBS = 2
MAX_JOBS = 12


def compare(sessions: Sessions, store: ArtifactStore, project_id: str, job_ids: Sequence[str]) -> Comparison:
    """The project's jobs in that order. Raises `BadRequest`, `NotFound` and `StoreAway`."""
    if not MIN_JOBS <= len(job_ids) <= MAX_JOBS or len(set(job_ids)) < len(job_ids):
        message = f"{MIN_JOBS} to {MAX_JOBS} different jobs can be compared"
        raise BadRequest(message, remedy="send job=ID for each of them, once", field="job")
    subjects = _subjects(sessions, store, project_id, job_ids)
    beaten_by = dominating(subjects)
    measures = _Measures(
        shared_measure(each.losses for each in subjects), shared_measure(each.speeds for each in subjects)
    )
    return Comparison(
        jobs=tuple(_compared(subject, rivals, measures) for subject, rivals in zip(subjects, beaten_by, strict=True)),
        quality_measure=COMMON_MEASURES.get(measures.quality or ""),
        speed_measure=COMMON_MEASURES.get(measures.speed or ""),
        differences=differences([subject.row.recipe for subject in subjects]),
        measurements=side_by_side(subjects),
        notices=tuple(notices(subjects)),
    )


def _subjects(sessions: Sessions, store: ArtifactStore, project_id: str, job_ids: Sequence[str]) -> list[Subject]:
    with sessions() as session:  # given back before the store is asked, which may take its time
        rows = [jobs.get(session, project_id, job_id) for job_id in job_ids]
        files = [artifacts.find(session, row.id, reports.FILE) for row in rows]
    return [
        Subject(row, Recipe.model_validate(row.recipe), reports.read(store, row.id, row.epoch, found))
        for row, found in zip(rows, files, strict=True)
    ]


class _Measures(NamedTuple):
    """By which all of them are shown; None where they share none."""

    quality: str | None
    speed: str | None


def _compared(subject: Subject, rivals: Sequence[Subject], measures: _Measures) -> ComparedJob:
    return ComparedJob(
        id=subject.row.id,
        name=subject.recipe.name,
        status=subject.row.status,
        model=str(subject.recipe.model),
        summary=subject.summary,
        weight_bytes=subject.weight_bytes,
        quality=subject.losses.get(measures.quality or ""),
        tokens_per_second=subject.speeds.get(measures.speed or ""),
        seconds=subject.seconds,
        on_front=is_measured(subject) and not rivals,
        dominated_by=tuple(rival.row.id for rival in rivals),
    )
