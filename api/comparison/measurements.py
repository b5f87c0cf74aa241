"""The before/after tables of several reports, side by side."""

from collections.abc import Sequence

from api.comparison.subject import Subject, number
from lathe.comparison_models import ComparedMeasurement
from optcore.report import Measurement


def side_by_side(subjects: Sequence[Subject]) -> tuple[ComparedMeasurement, ...]:
    """One row for each measure that any of them has, in the order of the reports."""
    names = dict.fromkeys(name for subject in subjects for name in subject.measured)
    return tuple(_row([subject.measured.get(name) for subject in subjects]) for name in names)


def _row(found: Sequence[Measurement | None]) -> ComparedMeasurement:
    first = next(each for each in found if each is not None)
    results = tuple(number(each.result) if each else None for each in found)
    return ComparedMeasurement(
        name=first.name,
        title=first.title,
        unit=first.unit,
        better=first.better,
        sources=tuple(number(each.source) if each else None for each in found),
        results=results,
        best=_best(results, first.better),
    )


def _best(results: Sequence[float | None], better: str | None) -> int | None:
    """Where there is something to choose: two that measured it, and not the same number."""
    known = [value for value in results if value is not None]
    if better is None or len(set(known)) < 2:
        return None
    return results.index(min(known) if better == "lower" else max(known))
