"""Why the numbers of several jobs may not be comparable."""

from collections.abc import Iterator, Mapping, Sequence

from api.comparison.subject import HARDWARE, Subject, shared_measure


def notices(subjects: Sequence[Subject]) -> Iterator[str]:
    """One sentence for each reason."""
    for each in subjects:
        if each.report is None:
            yield f"{each.title} has no report that can be read: it is {each.row.status}."
    reports = [each.report for each in subjects if each.report]
    if len({report.source_digest for report in reports}) > 1:
        yield (
            "They start from different sources, so their quality does not compare; "
            "only results of the same source are held against each other."
        )
    machines = list(dict.fromkeys(each.hardware for each in subjects if each.report))
    if len(machines) > 1:
        yield f"Speed was measured on different hardware: {'; '.join(each or 'not known' for each in machines)}."
    if len({report.data_digest for report in reports}) > 1:
        yield (
            "They were calibrated, and quality was measured, on different text; "
            "only results of the same text are held against each other."
        )
    for axis, measured in (
        ("Quality", [each.losses for each in subjects]),
        ("Speed", [each.speeds for each in subjects]),
    ):
        if any(measured) and shared_measure(measured) is None:
            yield f"{axis} was measured by {_names(measured)}, and by none of them for all: it does not compare."
    if any(each.recipe.evaluate != subjects[0].recipe.evaluate for each in subjects[1:]):
        yield "Their evaluators have different settings; the differences below say which."
    packages = dict.fromkeys(name for report in reports for name in report.environment if name != HARDWARE)
    others = [name for name in packages if len({report.environment.get(name) for report in reports}) > 1]
    if others:
        yield f"They ran with different versions of {', '.join(others)}."


def _names(measured: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(dict.fromkeys(name for each in measured for name in each))
