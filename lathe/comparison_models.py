"""The wire of comparisons: jobs side by side."""

from typing import Any, Literal

from lathe.models import JobStatus, Wire


class CommonMeasure(Wire):
    """By what all jobs are shown that were measured on an axis."""

    name: str
    title: str
    unit: str
    """As in the before/after tables; `share` is 0 to 1."""


class ComparedJob(Wire):
    """One of the jobs that are compared."""

    id: str
    name: str | None
    status: JobStatus
    model: str
    summary: str
    """What its chain does, in one line."""
    weight_bytes: float | None
    """Of the result."""
    quality: float | None
    """What was lost of it, by the comparison's `quality_measure`. Less is better; null if none is shared."""
    tokens_per_second: float | None
    """By the comparison's `speed_measure`; null if none is shared."""
    seconds: float | None
    """In workers' hands, in its last run; null before the end."""
    on_front: bool
    """True when none of the others with the same source is as good in all that both measured, and better in one. What
    was measured in different ways, or on different text, is not known to be as good."""
    dominated_by: tuple[str, ...] = ()
    """Ids of those that are."""


class Difference(Wire):
    """A place where the recipes differ."""

    pointer: str
    """JSON Pointer into the recipe."""
    values: tuple[Any, ...]
    """In the order of the jobs; null where a recipe has nothing there."""


class ComparedMeasurement(Wire):
    """One row of the before/after tables, side by side."""

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    sources: tuple[float | None, ...]
    results: tuple[float | None, ...]
    """In the order of the jobs."""
    comparable: tuple[bool, ...] = ()
    """Whether each result can be held against the first one that there is: they have one source, and were measured on
    the same text, or hardware, where the measure depends on it."""
    best: int | None
    """Index of the best of these results; absent where none is."""


class Comparison(Wire):
    """Jobs side by side: what was asked, what came out, and which of them no other one beats."""

    object: Literal["comparison"] = "comparison"
    jobs: tuple[ComparedJob, ...]
    quality_measure: CommonMeasure | None = None
    """KL to the source, or the accuracy that a classifier lost; null if none is shared."""
    speed_measure: CommonMeasure | None = None
    """Decoding, or reading; null if none is shared."""
    differences: tuple[Difference, ...]
    measurements: tuple[ComparedMeasurement, ...]
    notices: tuple[str, ...] = ()
    """Why the numbers may not be comparable: other hardware, other text, another source."""
