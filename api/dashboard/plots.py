"""What was measured along the way, as plots: curves of one unit together, each with its band, its last and its best."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from lathe.models import MetricCurve
from optcore.events import GPU_MEMORY, MEMORY
from optcore.report import Report, Series
from optcore.report.numbers import format_bytes, format_number

POINTS = 240
_NATS = "nats a token"
_RELATIVE = "relative error"


class _Group(NamedTuple):
    """Metrics that share a plot."""

    title: str
    unit: str = ""
    x: str = "step"
    in_bytes: bool = False


_LOSS, _BLOCKS = _Group("Loss", _NATS), _Group("Error by block", "mean squared error", "layer")
_MEMORY = _Group("Memory in use", x="second", in_bytes=True)
_GROUPS = {
    "loss": _LOSS,
    "validation_kl": _LOSS,
    "validation_cross_entropy": _LOSS,
    "validation_agreement": _Group("Agreement with the teacher", "share"),
    "layer_error": _Group("Error by layer", _RELATIVE, "layer"),
    "reconstruction_error": _Group("Reconstruction error by layer", _RELATIVE, "layer"),
    "block_error": _BLOCKS,
    "block_error_before": _BLOCKS,
    "learning_rate": _Group("Learning rate"),
    MEMORY: _MEMORY,
    GPU_MEMORY: _MEMORY,
}
"""What is known; any other metric is a plot of its own."""
_LABELS = {MEMORY: "host", GPU_MEMORY: "GPU"}
_LOWER = ("loss", "error", "kl", "entropy", "perplexity")
_HIGHER = ("agreement", "accuracy", "acceptance")


@dataclass(frozen=True)
class Value:
    """One point worth naming."""

    value: float
    step: int
    in_bytes: bool = False

    @property
    def text(self) -> str:
        """The number for people."""
        return format_bytes(self.value) if self.in_bytes else format_number(self.value)


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
    in_bytes: bool = False

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
        return json.dumps({"x": self.x, "inBytes": self.in_bytes, "lines": drawn}, allow_nan=False)

    @property
    def said(self) -> str:
        """For those who do not see it."""
        lines = "; ".join(f"{line.label}: last {line.last.text} at {self.x} {line.last.step}" for line in self.lines)
        return f"{self.title} of {self.stage}. {lines}" if self.stage else f"{self.title}. {lines}"


def of_metrics(curves: Sequence[MetricCurve]) -> list[Plot]:
    """The curves that have more than one point, by stage and unit."""
    shown = [curve for curve in curves if len(curve.mean) > 1]
    key: Callable[[MetricCurve], tuple[str, int, _Group]] = lambda curve: (curve.stage, *_group(curve.name))  # noqa: E731
    plots = []
    for (stage, _, kind), alike in groupby(sorted(shown, key=key), key):
        lines = [_line(curve, in_bytes=kind.in_bytes) for curve in alike]
        plots.append(Plot(kind.title, kind.x, kind.unit, lines, stage, kind.in_bytes))
    return plots


def of_report(report: Report | None, curves: Sequence[MetricCurve]) -> list[Plot]:
    """The report's own curves, but for those that were told while they were measured."""
    told = {f"{curve.stage}-{curve.name.removeprefix('validation_')}" for curve in curves}
    series = report.series if report else ()
    return [_of_series(each) for each in series if each.name not in told and len(each.points) > 1]


def of_layers(report: Report | None, told: Sequence[MetricCurve] = ()) -> Plot | None:
    """How far each decoder layer's output is from the source's; not again where a stage told just that."""
    errors = [each.relative_error for each in report.layer_errors] if report else []
    if len(errors) < 2 or any(list(curve.mean) == errors for curve in told):
        return None
    line = _drawn("relative error", list(range(len(errors))), errors, lower=True)
    return Plot("Error by layer", "layer", _RELATIVE, [line])


def single(curves: Sequence[MetricCurve]) -> list[tuple[str, str, str]]:
    """Stage, name and value of what was measured once; one sample of what goes on is no measurement."""
    once = (each for each in curves if len(each.mean) == 1 and each.name not in (MEMORY, GPU_MEMORY))
    return [(each.stage, each.name, format_number(each.last[-1])) for each in once]


def _group(name: str) -> tuple[int, _Group]:
    """Its place among the plots, and what it is: what is known comes first, in our order."""
    known = list(_GROUPS.values())
    group = _GROUPS.get(name)
    return (known.index(group), group) if group else (len(known), _Group(name.replace("_", " ").capitalize()))


def _line(curve: MetricCurve, *, in_bytes: bool) -> Line:
    words = curve.name.split("_")
    best = None
    if any(word in _HIGHER for word in words):
        best = _extreme(curve.high, curve.last_step, max)
    elif any(word in _LOWER for word in words):
        best = _extreme(curve.low, curve.last_step, min)
    last = Value(curve.last[-1], curve.last_step[-1], in_bytes)
    label = _LABELS.get(curve.name, curve.name.replace("_", " "))
    return Line(label, curve.last_step, curve.mean, curve.low, curve.high, last, best)


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
