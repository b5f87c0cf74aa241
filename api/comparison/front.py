"""The Pareto front: the results that no other one of the same source beats in size, quality and speed."""

from collections.abc import Sequence

from api.comparison.subject import Subject


def dominating(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """For each subject those that dominate it."""
    return [[other for other in subjects if other is not one and _dominates(other, one)] for one in subjects]


def is_measured(subject: Subject) -> bool:
    """Whether it can be on the front at all."""
    return any(value is not None for value in _losses(subject))


def _dominates(one: Subject, other: Subject) -> bool:
    """As good in all that both measured, and better in one."""
    if one.report is None or other.report is None or one.report.source_digest != other.report.source_digest:
        return False
    pairs = zip(_losses(one), _losses(other), strict=True)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return all(a <= b for a, b in both) and any(a < b for a, b in both)


def _losses(subject: Subject) -> tuple[float | None, ...]:
    """Of each of them less is better."""
    speed = subject.tokens_per_second
    return subject.weight_bytes, subject.quality, None if speed is None else -speed
