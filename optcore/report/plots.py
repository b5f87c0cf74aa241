"""Where the bars and lines of the report's plots lie. Pure geometry: the template draws it as SVG.

Positions are computed as exact fractions, because measured values can be as far apart as floats allow, and a
difference of floats then overflows or vanishes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from optcore.report.model import LayerError, Measurement, Series, StageCost, Trial
from optcore.report.numbers import GATE_METRICS, format_bound, format_number, format_peaks, format_seconds, format_value

WIDTH, HEIGHT = 820, 240  # SVG units of a curve's drawing, frame and labels included
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 12, 30  # what the labels take of it
MAX_POINTS = 400  # more cannot be told apart at this width


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar. `share` is its length over the longest possible, from 0 to 1."""

    label: str
    value: str
    share: float
    kind: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled position in SVG units: a tick of an axis, or a point of a curve."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A line in a frame of `WIDTH` by `HEIGHT`."""

    title: str
    path: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Mark, ...]
    y_ticks: tuple[Mark, ...]


def measurement_bars(row: Measurement) -> tuple[Bar, ...]:
    """Source, baseline and result of one measure, as far as they are there, against the largest of them."""
    named = (("source", row.source), ("max scales", row.baseline), ("result", row.result))
    present = [(label, value) for label, value in named if value is not None]
    shares = _shares([value for _, value in present])
    return tuple(
        Bar(label, format_value(value, row.unit), share, label.split()[0])
        for (label, value), share in zip(present, shares, strict=True)
    )


def trial_bars(trials: Sequence[Trial]) -> dict[str, tuple[Bar, ...]]:
    """What each gated stage measured, by the title of the metric, against the largest value or bound of that metric."""
    charts: dict[str, tuple[Bar, ...]] = {}
    for metric in dict.fromkeys(trial.metric for trial in trials):
        same = [trial for trial in trials if trial.metric == metric]
        title, unit = GATE_METRICS[metric]
        shares = _shares([*(trial.value for trial in same), *(trial.bound for trial in same)])
        charts[title] = tuple(
            Bar(
                f"{trial.stage}: {trial.tried}",
                f"{format_value(trial.value, unit)}, {format_bound(trial)}",
                share,
                "result" if trial.passed else "source",
            )
            for trial, share in zip(same, shares, strict=False)
        )
    return charts


def stage_bars(stages: Sequence[StageCost]) -> tuple[Bar, ...]:
    """The time of each stage against the longest."""
    shares = _shares([stage.seconds for stage in stages])
    return tuple(
        Bar(stage.name, _cost(stage), share, "cached" if stage.cached else "result")
        for stage, share in zip(stages, shares, strict=True)
    )


def layer_curve(errors: Sequence[LayerError]) -> Curve | None:
    """The relative error by layer; None when there is nothing to draw."""
    points = tuple((float(index), error.relative_error) for index, error in enumerate(errors))
    labels = {float(index): error.layer for index, error in enumerate(errors)}
    return _curve("Relative error of the hidden state, by layer", points, "", labels, from_zero=True)


def series_curve(series: Series) -> Curve | None:
    """A curve of a series; None when it has no points."""
    return _curve(series.title, series.points, series.unit, {})


def nice_ticks(low: float, high: float, count: int = 4) -> tuple[float, ...]:
    """About `count` round numbers between two bounds, or just the bounds where the range is beyond floats."""
    span = high - low
    if not 1e-300 < span < math.inf:
        return (low,) if low == high else (low, high)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((power * factor for factor in (1, 2, 5) if power * factor * count >= span), power * 10)
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(index * step for index in range(first, last + 1))


def _curve(
    title: str, points: Sequence[tuple[float, float]], unit: str, labels: dict[float, str], *, from_zero: bool = False
) -> Curve | None:
    if not points:
        return None
    kept = _thinned(points)
    xs, ys = [x for x, _ in kept], [y for _, y in kept]
    low = 0.0 if from_zero else min(ys)
    across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT), _Axis(low, max(ys), HEIGHT - BOTTOM, TOP)
    marks = tuple(
        Mark(across.at(x), up.at(y), f"{labels.get(x, format_number(x))}: {format_value(y, unit)}") for x, y in kept
    )
    return Curve(
        title=title,
        path="M" + "L".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in marks),
        marks=marks,
        x_ticks=_x_ticks(xs, across, labels),
        y_ticks=tuple(Mark(LEFT, up.at(y), format_value(y, unit)) for y in nice_ticks(low, max(ys))),
    )


def _x_ticks(xs: Sequence[float], across: "_Axis", labels: dict[float, str]) -> tuple[Mark, ...]:
    """Round numbers, or, where positions have names, the first, the middle and the last of those."""
    if not labels:
        values: Sequence[float] = nice_ticks(min(xs), max(xs), 6)
    else:
        values = sorted({xs[0], xs[len(xs) // 2], xs[-1]})
    return tuple(Mark(across.at(x), HEIGHT - BOTTOM, labels.get(x, format_number(x))) for x in values)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear map from the values between `low` and `high` to positions between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        if self.low == self.high:
            return (self.start + self.end) / 2
        share = (Fraction(value) - Fraction(self.low)) / (Fraction(self.high) - Fraction(self.low))
        return self.start + float(share) * (self.end - self.start)


def _shares(values: Sequence[float]) -> list[float]:
    """Each value over the largest; negative ones have no length."""
    largest = max([*values, 0.0])
    return [float(Fraction(value) / Fraction(largest)) if value > 0 else 0.0 for value in values]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MAX_POINTS`, evenly spaced, first and last among them."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[index * last // (MAX_POINTS - 1)] for index in range(MAX_POINTS)]


def _cost(stage: StageCost) -> str:
    cost = f"{format_seconds(stage.seconds)}, peak {format_peaks(stage.peak_memory_bytes, stage.peak_gpu_memory_bytes)}"
    return f"{cost}, cached" if stage.cached else cost
