"""What was measured along the way, as plots: curves of one unit together, each with its band, its last and its best."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from lathe.models import MetricCurve
from optcore.report import Report, Series
from optcore.report.numbers import format_number

POINTS = 240
_NATS = "nats a token"
_GROUPS = {
    "loss": ("Loss", _NATS),
    "validation_kl": ("Loss", _NATS),
    "validation_cross_entropy": ("Loss", _NATS),
    "validation_agreement": ("Agreement with the teacher", "share"),
    "block_error": ("Error by block", "mean squared error"),
    "block_error_before": ("Error by block", "mean squared error"),
    "learning_rate": ("Learning rate", ""),
}
"""Title and unit of what is known; any other metric is a plot of its own."""
_BY_LAYER = {"block_error", "block_error_before"}
_LOWER = ("loss", "error", "kl", "entropy", "perplexity")
_HIGHER = ("agreement", "accuracy", "acceptance")


@dataclass(frozen=True)
class Value:
    """One point worth naming."""

    value: float
    step: int

    @property
    def text(self) -> str:
        """The number for people."""
        return format_number(self.value)


@dataclass(frozen=True)
class Line:
    """One curve of a plot."""

    label: str
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    last: Value
    best: Value | None
    """Where one direction is known to be good."""

    @property
    def is_thinned(self) -> bool:
        """Whether points stand for several steps, so that there is a band to draw."""
        return list(self.low) != list(self.high)


@dataclass(frozen=True)
class Plot:
    """Curves of one unit over the same axis."""

    title: str
    x: str
    unit: str
    lines: Sequence[Line]
    stage: str = ""

    @property
    def data(self) -> str:
        """What the script draws, as JSON."""
        drawn = [
            {
                "label": line.label,
                "x": list(line.steps),
                "mean": list(line.mean),
                **({"low": list(line.low), "high": list(line.high)} if line.is_thinned else {}),
            }
            for line in self.lines
        ]
        return json.dumps({"x": self.x, "lines": drawn}, allow_nan=False)

    @property
    def said(self) -> str:
        """For those who do not see it."""
        lines = "; ".join(f"{line.label}: last {line.last.text} at {self.x} {line.last.step}" for line in self.lines)
        return f"{self.title} of {self.stage}. {lines}" if self.stage else f"{self.title}. {lines}"


def of_metrics(curves: Sequence[MetricCurve]) -> list[Plot]:
    """The curves that have more than one point, by stage and unit."""
    shown = [curve for curve in curves if len(curve.mean) > 1]
    key: Callable[[MetricCurve], tuple[str, int, str, str]] = lambda curve: (curve.stage, *_group(curve.name))  # noqa: E731
    plots = []
    for (stage, _, title, unit), group in groupby(sorted(shown, key=key), key):
        lines = [_line(curve) for curve in group]
        x = "layer" if {line.label.replace(" ", "_") for line in lines} <= _BY_LAYER else "step"
        plots.append(Plot(title, x, unit, lines, stage))
    return plots


def of_report(report: Report | None, curves: Sequence[MetricCurve]) -> list[Plot]:
    """The report's own curves, but for those that were told while they were measured."""
    told = {f"{curve.stage}-{curve.name.removeprefix('validation_')}" for curve in curves}
    series = report.series if report else ()
    return [_of_series(each) for each in series if each.name not in told and len(each.points) > 1]


def of_layers(report: Report | None) -> Plot | None:
    """How far each decoder layer's output is from the source's."""
    errors = [each.relative_error for each in report.layer_errors] if report else []
    if len(errors) < 2:
        return None
    line = _drawn("relative error", list(range(len(errors))), errors, lower=True)
    return Plot("Error by layer", "layer", "relative error", [line])


def single(curves: Sequence[MetricCurve]) -> list[tuple[str, str, str]]:
    """Stage, name and value of what was measured once."""
    return [(each.stage, each.name, format_number(each.last[-1])) for each in curves if len(each.mean) == 1]


def _group(name: str) -> tuple[int, str, str]:
    """Its place, title and unit: what is known comes first, in our order."""
    known = list(_GROUPS)
    title, unit = _GROUPS.get(name, (name.replace("_", " ").capitalize(), ""))
    first = next((i for i, each in enumerate(known) if _GROUPS[each][0] == title), len(known))
    return first, title, unit


def _line(curve: MetricCurve) -> Line:
    words = curve.name.split("_")
    best = None
    if any(word in _HIGHER for word in words):
        best = _extreme(curve.high, curve.last_step, max)
    elif any(word in _LOWER for word in words):
        best = _extreme(curve.low, curve.last_step, min)
    last = Value(curve.last[-1], curve.last_step[-1])
    return Line(curve.name.replace("_", " "), curve.last_step, curve.mean, curve.low, curve.high, last, best)


def _of_series(series: Series) -> Plot:
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    unit = series.unit or series.name
    return Plot(series.title, "step", unit, [_drawn(unit, xs, ys, lower=series.unit == "nats/token")])


def _drawn(label: str, xs: Sequence[float], ys: Sequence[float], *, lower: bool) -> Line:
    steps = [round(x) for x in xs]
    best = _extreme(ys, steps, min) if lower else None
    return Line(label, xs, ys, ys, ys, Value(ys[-1], steps[-1]), best)


def _extreme(values: Sequence[float], steps: Sequence[int], pick: Callable[[Sequence[float]], float]) -> Value:
    best = pick(values)
    return Value(best, steps[list(values).index(best)])
