"""Jobs side by side."""

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from pydantic import StringConstraints

from api import wire
from api.comparison import MAX_JOBS, MIN_JOBS, compare
from api.dashboard.pages import PageRoute, page
from api.dashboard.scatter import scatter
from api.dashboard.session import CountedDep
from api.deps import SessionsDep, StoreDep
from api.store import jobs, listing
from api.store.session import Sessions
from lathe.comparison_models import ComparedMeasurement
from lathe.models import Job
from optcore.report import Measurement

router = APIRouter(route_class=PageRoute, include_in_schema=False)

OFFERED = 30
"""Finished jobs to choose from; the list of jobs has all of them."""
MAX_VALUE_characters = 400

_Ids = Annotated[list[Annotated[str, StringConstraints(max_length=64)]] | None, Query(max_length=MAX_JOBS)]


@router.get("/compare")
def show_comparison(sessions: SessionsDep, store: StoreDep, viewer: CountedDep, job: _Ids = None) -> Response:
    """What differs, what came out, and which results no other one beats; or a choice of jobs."""
    ids = list(dict.fromkeys(job or ()))
    if len(ids) < MIN_JOBS:
        offered = _named(sessions, viewer.project_id, ids) + _newest(sessions, viewer.project_id, ids)
        return page("compare_pick.html", viewer=viewer.project_name, offered=offered, ids=ids)
    found = compare(sessions, store, viewer.project_id, ids)
    letters = ascii_uppercase[: len(ids)]
    return page(
        "compare.html",
        viewer=viewer.project_name,
        found=found,
        letters=letters,
        letter_of=dict(zip(ids, letters, strict=True)),
        without={one: _address([other for other in ids if other != one]) for one in ids},
        ids=ids,
        offered=_newest(sessions, viewer.project_id, ids) if len(ids) < MAX_JOBS else [],
        picture=scatter(found.jobs, letters, found.quality_measure),
        cells=cells,
        source=common_source,
        with_source=any(common_source(row) is not None for row in found.measurements),
        text=text,
    )


def cells(row: ComparedMeasurement) -> list[tuple[Measurement, bool]]:
    """Each result as a measurement whose source is the first job's, and whether no other one is better.

    A result that does not compare with the others has no source, and is not the best.
    """
    best = None if row.best is None else row.results[row.best]
    first, *_ = row.results
    return [
        (_against(row, first if index and fair else None, result), fair and result == best)
        for index, (result, fair) in enumerate(zip(row.results, row.comparable, strict=True))
    ]


def common_source(row: ComparedMeasurement) -> float | None:
    """The source's value, where it is one and the same."""
    known = {value for value in row.sources if value is not None}
    return known.pop() if len(known) == 1 else None


def text(value: Any) -> str:
    """A value of a recipe, in short."""
    if value is None:
        return "–"  # noqa: RUF001  an en dash: nothing there
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return plain if len(plain) <= MAX_VALUE_characters else f"{plain[:MAX_VALUE_characters]}…"


def _against(row: ComparedMeasurement, first: float | None, result: float | None) -> Measurement:
    return Measurement(name=row.name, title=row.title, unit=row.unit, source=first, result=result, better=row.better)


def _address(ids: Sequence[str]) -> str:
    return f"/compare?{urlencode([('job', each) for each in ids])}"


def _named(sessions: Sessions, project_id: str, ids: Sequence[str]) -> list[Job]:
    """Those that the address names. Raises `NotFound`."""
    with sessions() as session:
        return [wire.job(jobs.get(session, project_id, job_id), ()) for job_id in ids]


def _newest(sessions: Sessions, project_id: str, but: Sequence[str]) -> list[Job]:
    """The newest that succeeded, without those that are named already."""
    with sessions() as session:
        done = listing.Query(statuses=("succeeded",))
        found, _ = listing.page(session, project_id, limit=OFFERED, query=done)
        return [wire.job(row, ()) for row in found if row.id not in but]
