"""Where the points of a race's plot lie: size across, distance to the source up. Pure geometry, drawn as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optcore.report.front import Candidate, Front
from optcore.report.numbers import format_bytes, format_number
from optcore.report.plots import BOTTOM, LEFT, RIGHT, WIDTH, Mark, nice_ticks

HEIGHT = 320  # SVG units, frame and labels included
TOP = 24  # what a label above the highest point takes
_MARGIN = 0.06  # of the frame, left free around the points
_WIDE = 20  # a ratio of the largest to the smallest beyond which the smaller ones would lie on the axis


@dataclass(frozen=True, slots=True)
class Dot:
    """A candidate."""

    x: float
    y: float
    name: str
    label: str
    kind: str
    """Its status."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """Candidates in a frame of `WIDTH` by `HEIGHT`, and a line along the front."""

    title: str
    dots: tuple[Dot, ...]
    path: str
    x_ticks: tuple[Mark, ...]
    y_ticks: tuple[Mark, ...]


def scatter(front: Front) -> Scatter | None:
    """None where fewer than two candidates were measured. The scale up is logarithmic where losses differ widely."""
    seen = [(one, one.weight_bytes, loss) for one in front.candidates if (loss := _loss(one)) is not None]
    points = [(one, float(size), loss) for one, size, loss in seen if size]
    if len(points) < 2:
        return None
    losses = [loss for _, _, loss in points]
    is_wide = min(losses) > 0 and max(losses) > _WIDE * min(losses)
    up = _scale([math.log10(loss) for loss in losses] if is_wide else losses, HEIGHT - BOTTOM, TOP)
    across = _scale([size for _, size, _ in points], LEFT, WIDTH - RIGHT)
    dots = tuple(
        Dot(across.at(size), up.at(math.log10(loss) if is_wide else loss), one.name, _label(one), one.status)
        for one, size, loss in points
    )
    along = sorted((dot.x, dot.y) for dot, (one, _, _) in zip(dots, points, strict=True) if one.is_on_front)
    return Scatter(
        title="Distance to the source by size" + (", on a logarithmic scale" if is_wide else ""),
        dots=dots,
        path="M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in along) if len(along) > 1 else "",
        x_ticks=tuple(Mark(across.at(x), HEIGHT - BOTTOM, format_bytes(x)) for x in across.ticks()),
        y_ticks=tuple(Mark(LEFT, up.at(y), _amount(y, is_wide=is_wide)) for y in up.ticks()),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map of values to a side of the frame."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Sequence[float]:
        return [tick for tick in nice_ticks(self.low, self.high) if self.low <= tick <= self.high]


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    room = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
    return _Scale(low - room, high + room, start, end)


def _loss(one: Candidate) -> float | None:
    return one.kl if one.kl is not None else one.accuracy_loss


def _amount(value: float, *, is_wide: bool) -> str:
    return format_number(float(f"{10**value:.2g}") if is_wide else value)


def _label(one: Candidate) -> str:
    loss, size = format_number(_loss(one) or 0.0), format_bytes(one.weight_bytes or 0)
    return f"{one.name}, {one.status}: {one.chain}; {size}, loss {loss}"
