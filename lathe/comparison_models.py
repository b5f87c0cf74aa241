"""The wire of comparisons: jobs side by side."""

from typing import Any, Literal

from lathe.models import JobStatus, Wire


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
    """KL to the source, nats a token; accuracy's loss for classifiers. Less is better; null if none is shared."""
    tokens_per_second: float | None
    """Decoding, or reading; null if none is shared."""
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
    best: int | None
    """Index of the best result; absent where none is."""


class Comparison(Wire):
    """Jobs side by side: what was asked, what came out, and which of them no other one beats."""

    object: Literal["comparison"] = "comparison"
    jobs: tuple[ComparedJob, ...]
    differences: tuple[Difference, ...]
    measurements: tuple[ComparedMeasurement, ...]
    notices: tuple[str, ...] = ()
    """Why the numbers may not be comparable: other hardware, other text, another source."""
