"""The Pareto front: the results that no other one of the same source beats in size, quality and speed."""

from collections.abc import Iterator, Sequence

from api.comparison.subject import Subject, shared_measure


def dominating(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """For each subject those that dominate it."""
    return [_dominating(one, [each for each in subjects if _have_one_source(each, one)]) for one in subjects]


def is_measured(subject: Subject) -> bool:
    """Whether it can be on the front at all."""
    return bool(subject.weight_bytes is not None or subject.losses or subject.speeds)


def _have_one_source(one: Subject, other: Subject) -> bool:
    return bool(one.report and other.report and one.report.source_digest == other.report.source_digest)


def _dominating(one: Subject, peers: Sequence[Subject]) -> list[Subject]:
    """As good in all that both measured, and better in one.

    Where both measured an axis and their numbers do not compare, neither is known to be as good.
    """
    quality = shared_measure(each.losses for each in peers)
    speed = shared_measure(each.speeds for each in peers)

    def dominates(other: Subject) -> bool:
        pairs = list(_pairs(other, one, quality, speed))
        known = [pair for pair in pairs if pair is not None]
        return len(known) == len(pairs) and all(a <= b for a, b in known) and any(a < b for a, b in known)

    return [other for other in peers if other is not one and dominates(other)]


def _pairs(
    one: Subject, other: Subject, quality: str | None, speed: str | None
) -> Iterator[tuple[float, float] | None]:
    """For each axis that both measured what is the better the less, in the chosen measure; None does not compare."""
    if one.weight_bytes is not None and other.weight_bytes is not None:
        yield one.weight_bytes, other.weight_bytes
    if one.losses and other.losses:
        of_one_text = one.report and other.report and one.report.data_digest == other.report.data_digest
        yield (one.losses[quality], other.losses[quality]) if quality and of_one_text else None
    if one.speeds and other.speeds:
        on_one_machine = one.hardware == other.hardware
        yield (-one.speeds[speed], -other.speeds[speed]) if speed and on_one_machine else None
