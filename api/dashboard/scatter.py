"""The plot of a comparison: size by quality, the speed as the area of a circle. Drawn here, so it needs no script."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lathe.comparison_models import CommonMeasure, ComparedJob
from optcore.report.numbers import format_bytes, format_number, format_value

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 24, 46
SMALLEST, LARGEST = 9.0, 19.0
"""Radii."""
TICKS = 6
_ROOM = 0.14
"""Of an axis, left free at each end, so that no circle is cut off."""
_LEAST = 1e-300
"""Length of an axis: below it a step between marks is no number any more."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid."""

    at: float
    text: str


@dataclass(frozen=True)
class Circle:
    """One job."""

    letter: str
    x: float
    y: float
    radius: float
    on_front: bool


@dataclass(frozen=True)
class Scatter:
    """All that is drawn, in the units of the picture."""

    columns: Sequence[Tick]
    rows: Sequence[Tick]
    circles: Sequence[Circle]
    """The largest first, so that none hides another one."""
    quality: str
    """What the vertical axis is."""
    words: str
    """What the picture shows, for who cannot see it."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatter(
    jobs: Sequence[ComparedJob], letters: Sequence[str], measure: CommonMeasure | None = None
) -> Scatter | None:
    """The jobs of which size and quality are known; None where these are fewer than two, or worlds apart.

    `measure` is that of the quality.
    """
    shown = [
        (letter, job, job.weight_bytes, job.quality)
        for letter, job in zip(letters, jobs, strict=True)
        if job.weight_bytes is not None and job.quality is not None
    ]
    if len(shown) < 2:
        return None
    sizes, losses = _ends([size for _, _, size, _ in shown]), _ends([loss for _, _, _, loss in shown])
    if sizes is None or losses is None:
        return None
    told = partial(format_value, unit="share") if measure and measure.unit == "share" else format_number
    across, columns = _axis(sizes, LEFT, WIDTH - RIGHT, format_bytes)
    up, rows = _axis(losses, HEIGHT - BOTTOM, TOP, told)
    fastest = max((job.tokens_per_second or 0 for _, job, _, _ in shown), default=0)
    circles = [
        Circle(letter, across(size), up(loss), _radius(job.tokens_per_second, fastest), job.on_front)
        for letter, job, size, loss in shown
    ]
    quality = _quality(measure)
    return Scatter(columns, rows, sorted(circles, key=lambda each: -each.radius), quality, _words(shown, quality, told))


def _quality(measure: CommonMeasure | None) -> str:
    if measure is None:
        return "Quality lost"
    return f"Quality lost: {measure.title}" + ("" if measure.unit == "share" else f", {measure.unit}")


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Where an axis begins and ends, with room beside the values; None where these numbers can have no marks."""
    least, most = min(values), max(values)
    room = (most - least) * _ROOM or abs(most) * _ROOM or 1.0
    low, high = least - room, most + room
    return (low, high) if _LEAST < high - low < math.inf else None


def _axis(
    ends: tuple[float, float], begin: int, end: int, words: Callable[[float], str]
) -> tuple[Callable[[float], float], list[Tick]]:
    """Where a value lies between `begin` and `end`, and round values on the way."""
    low, high = ends

    def place(value: float) -> float:
        return round(begin + (value - low) / (high - low) * (end - begin), 2)

    step = _round_step((high - low) / TICKS)
    first = math.ceil(low / step)
    marks = [step * number for number in range(first, math.floor(high / step) + 1)]
    return place, [Tick(place(mark), words(float(f"{mark:.6g}"))) for mark in marks]


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _radius(speed: float | None, fastest: float) -> float:
    """The area grows with the speed."""
    if speed is None or speed <= 0:
        return SMALLEST
    return round(math.sqrt(SMALLEST**2 + (LARGEST**2 - SMALLEST**2) * speed / fastest), 2)


def _words(shown: Sequence[tuple[str, ComparedJob, float, float]], quality: str, told: Callable[[float], str]) -> str:
    parts = (
        f"{letter}: {format_bytes(size)}, quality lost {told(loss)}{'' if job.on_front else ', dominated'}"
        for letter, job, size, loss in shown
    )
    return f"Size by {quality[0].lower()}{quality[1:]}. {'; '.join(parts)}. The tables below have all numbers."
