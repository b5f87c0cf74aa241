"""The before/after tables of several reports, side by side."""

from collections.abc import Sequence

from api.comparison.subject import Subject, number
from lathe.comparison_models import ComparedMeasurement
from optcore.report import Measurement

_OF_FILES = frozenset({"weight_bytes", "bits_per_weight", "parameters"})
"""Measures of the result itself, wherever it was made."""
_OF_MACHINE = frozenset({"tokens/s", "bytes", "seconds", "x", "times", "passes"})
"""Units of measures that depend on the hardware; all others depend on the text."""


def side_by_side(subjects: Sequence[Subject]) -> tuple[ComparedMeasurement, ...]:
    """One row for each measure that any of them has, in the order of the reports."""
    names = dict.fromkeys(name for subject in subjects for name in subject.measured)
    return tuple(_row(name, subjects) for name in names)


def _row(name: str, subjects: Sequence[Subject]) -> ComparedMeasurement:
    found = [subject.measured.get(name) for subject in subjects]
    first = next(each for each in found if each is not None)
    results = tuple(number(each.result) if each else None for each in found)
    comparable = _comparable(first, subjects, results)
    return ComparedMeasurement(
        name=first.name,
        title=first.title,
        unit=first.unit,
        better=first.better,
        sources=tuple(number(each.source) if each else None for each in found),
        results=results,
        comparable=comparable,
        best=_best([value if fair else None for value, fair in zip(results, comparable, strict=True)], first.better),
    )


def _comparable(row: Measurement, subjects: Sequence[Subject], results: Sequence[float | None]) -> tuple[bool, ...]:
    """For each result whether it came about as the first one did."""
    conditions = [
        None if result is None else _conditions(row, subject) for subject, result in zip(subjects, results, strict=True)
    ]
    first = next((each for each in conditions if each), None)
    return tuple(each is not None and each == first for each in conditions)


def _conditions(row: Measurement, subject: Subject) -> tuple[str, ...]:
    """What must be the same for two results of a measure to compare."""
    assert subject.report, "a result stands in a report"
    source = subject.report.source_digest
    if row.name in _OF_FILES:
        return (source,)
    return source, subject.hardware if row.unit in _OF_MACHINE else subject.report.data_digest


def _best(results: Sequence[float | None], better: str | None) -> int | None:
    """Where there is something to choose: two that measured it, and not the same number."""
    known = [value for value in results if value is not None]
    if better is None or len(set(known)) < 2:
        return None
    return results.index(min(known) if better == "lower" else max(known))
