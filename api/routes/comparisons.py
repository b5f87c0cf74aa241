"""Jobs side by side."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from api.comparison import MAX_JOBS, MIN_JOBS, compare
from api.deps import JobReader, SessionsDep, StoreDep
from lathe.comparison_models import Comparison

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

_Ids = Annotated[
    list[Annotated[str, StringConstraints(max_length=64)]],
    Query(min_length=MIN_JOBS, max_length=MAX_JOBS, description="Ids of jobs; repeat it."),
]


@router.get("")
def compare_jobs(sessions: SessionsDep, store: StoreDep, caller: JobReader, job: _Ids) -> Comparison:
    """Where their recipes differ, what their reports measured, and which results no other one beats."""
    return compare(sessions, store, caller.project_id, job)
