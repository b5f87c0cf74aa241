"""A job's stages over time: what ran when, in which attempt, and what came between. Computed from its history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lathe.models import TERMINAL, JobEvent

TYPES = (
    *("job.queued", "job.running", "job.pausing", "job.paused", "job.cancelling"),
    *(f"job.{status}" for status in TERMINAL),
    *("stage_started", "stage_finished"),
)
"""Events that it is made of."""
MAX_EVENTS = 2000
LONGEST_WAIT = 0.15
"""A wait is drawn no longer than this share of the time that was worked."""
THINNEST = 0.005
"""Share of the drawing that the shortest bar takes."""
_WORK = ("running", "pausing", "cancelling")
_STEPS_seconds = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 259200, 604800)


@dataclass(frozen=True)
class Bar:
    """A span of the drawing, in seconds of its own scale, on which long waits are cut short."""

    kind: str
    """What happened: a state such as `queued`, or how a stage's turn ended, such as `lost`."""
    words: str
    start: float
    end: float
    grows: bool = False
    """Whether it lasts still."""


@dataclass(frozen=True)
class Timeline:
    """The drawing: a lane for the job, and one for each stage."""

    total: float
    grows: bool
    cut: bool
    """Whether a wait is drawn shorter than it was."""
    job: tuple[Bar, ...]
    attempts: tuple[Bar, ...]
    stages: dict[str, tuple[Bar, ...]]
    ticks: tuple[float, ...]

    def share(self, seconds: float) -> str:
        """A place on the scale as SVG takes it."""
        return f"{100 * seconds / self.total:.3f}%"

    def width(self, bar: Bar) -> str:
        """How wide a bar is: what took no time, such as a hit in the cache, is seen too."""
        return self.share(max(bar.end - bar.start, THINNEST * self.total))


@dataclass
class _Span:
    kind: str
    start: datetime
    end: datetime | None = None
    words: str = ""

    def seconds(self, now: datetime) -> float:
        return max(0.0, ((self.end or now) - self.start).total_seconds())


@dataclass
class _Story:
    """The history read from front to back."""

    states: list[_Span] = field(default_factory=list)
    attempts: list[_Span] = field(default_factory=list)
    stages: dict[str, list[_Span]] = field(default_factory=dict)

    def read(self, event: JobEvent) -> None:
        if event.type == "stage_started":
            self.stages.setdefault(event.data["stage"], []).append(_Span("running", event.at))
        elif event.type == "stage_finished":
            self._finish(event)
        else:
            self._turn(event.type.removeprefix("job."), event)

    def _finish(self, event: JobEvent) -> None:
        spans = self.stages.setdefault(event.data["stage"], [])
        if not spans or spans[-1].end is not None:
            spans.append(_Span("running", event.at))
        spans[-1].end, spans[-1].kind = event.at, "cached" if event.data.get("cached") else "succeeded"

    def _turn(self, status: str, event: JobEvent) -> None:
        if self.states:
            self.states[-1].end = event.at
        self.states.append(_Span(status, event.at))
        if status == "running":
            self.attempts.append(_Span("running", event.at, words=f"attempt {len(self.attempts) + 1}"))
        elif status not in _WORK:
            self._end_attempt(_outcome(status, event.data), event.at)

    def _end_attempt(self, outcome: str, at: datetime) -> None:
        left_open = [span for spans in self.stages.values() for span in spans if span.end is None]
        for span in [*left_open, *(each for each in self.attempts[-1:] if each.end is None)]:
            span.end, span.kind = at, outcome


def draw(events: Sequence[JobEvent], names: Sequence[str], now: datetime) -> Timeline | None:
    """The timeline of the stages in `names` up to `now`; None before there is anything to draw."""
    story = _Story()
    for event in events:
        story.read(event)
    if not story.attempts:
        return None
    scale = _Scale(story.states, now)
    in_order = dict.fromkeys((*names, *story.stages))
    return Timeline(
        total=scale.total,
        grows=story.states[-1].kind in _WORK,
        cut=scale.cut,
        job=tuple(scale.bar(span) for span in story.states if span.kind not in TERMINAL),
        attempts=tuple(scale.bar(span) for span in story.attempts),
        stages={name: tuple(map(scale.bar, story.stages.get(name, ()))) for name in in_order},
        ticks=_ticks(scale.total),
    )


class _Scale:
    """From times to seconds of the drawing."""

    def __init__(self, states: Sequence[_Span], now: datetime) -> None:
        self._now = now
        worked = sum(span.seconds(now) for span in states if span.kind in _WORK)
        longest = max(1.0, LONGEST_WAIT * worked)
        self.cut, at = False, 0.0
        self._places: list[tuple[datetime, float, float]] = []
        """Where each state begins, and the longest that it may take."""
        for span in states:
            most = 0.0 if span.kind in TERMINAL else span.seconds(now)
            if span.kind not in (*_WORK, *TERMINAL) and most > longest:
                most, self.cut = longest, True
            self._places.append((span.start, at, most))
            at += most
        self.total = max(at, 0.001)

    def at(self, moment: datetime) -> float:
        start, begin, most = next((each for each in reversed(self._places) if each[0] <= moment), self._places[0])
        return begin + min(most, max(0.0, (moment - start).total_seconds()))

    def bar(self, span: _Span) -> Bar:
        grows = span.end is None and span.kind in _WORK
        return Bar(span.kind, span.words, self.at(span.start), self.at(span.end or self._now), grows)


def _outcome(status: str, data: dict[str, Any]) -> str:
    return str(data.get("reason") or status) if status == "queued" else status


def _ticks(total: float) -> tuple[float, ...]:
    step = next((each for each in _STEPS_seconds if total / each <= 6), total / 4)
    return tuple(step * i for i in range(int(total / step) + 1))
