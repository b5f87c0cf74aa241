"""What a run looks like while it runs: its stages, fed by events of the engine or of a service, and the time left."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lathe.display.cells import Bar
from lathe.display.grid import Grid
from optcore.report.numbers import format_peaks, format_seconds

INTERRUPTED = ("failed", "cancelled", "paused")
"""What a stage is called whose run stopped in it."""


@dataclass
class StageLine:
    """One row. Times are seconds of the clock that events carry."""

    name: str
    status: str = "pending"
    phase: str = ""
    done: int = 0
    total: int = 0
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    expected_seconds: float | None = None
    """By the engine's estimate."""
    began: float | None = None
    phase_began: float | None = None
    phase_began_with: int = 0
    """What of the phase was done when it was first heard of: a resumed one does not begin at 0."""

    def begin(self, at: float) -> None:
        self.status, self.phase, self.done, self.total = "running", "", 0, 0
        self.began, self.phase_began = at, None

    def set_aside(self, status: str) -> None:
        """Nothing runs: the clock stands."""
        self.status, self.phase, self.began, self.phase_began = status, "", None, None

    def advance(self, phase: str, done: int, total: int, at: float) -> bool:
        """Whether a new phase has begun."""
        new = phase != self.phase
        if new:
            self.phase_began, self.phase_began_with = at, done
        self.status, self.phase, self.done, self.total = "running", phase, done, total
        return new

    def left(self, now: float) -> float | None:
        """Seconds until a running stage ends, by the estimate and by the phase's own pace, whichever is later; of the
        phase alone where nothing was estimated."""
        by_pace = self._left_of_phase(now)
        if self.expected_seconds is None:
            return by_pace
        return max(self.expected_seconds - max(0.0, now - (self.began or now)), by_pace or 0.0)

    def _left_of_phase(self, now: float) -> float | None:
        did = self.done - self.phase_began_with
        if self.phase_began is None or did <= 0 or self.total <= self.done:
            return None
        return max(0.0, now - self.phase_began) / did * (self.total - self.done)


class StagesView:
    """The state that events add up to. Events of a kind that it does not know change nothing."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._stages: dict[str, StageLine] = {}
        self._clock = clock
        self._halted = False
        """The run has ended, or waits for its turn: nobody can say when it will be done."""
        self._behind = math.inf
        """How far the clock of the events is behind ours, the shortest delivery among it."""

    def feed(self, kind: str, data: Mapping[str, Any], at: float | None = None) -> str:
        """Take one event; the line that says it in a log, empty when it is not worth one."""
        handler: Callable[[Mapping[str, Any], float], str] | None
        handler = getattr(self, f"_on_{kind.replace('.', '_')}", None)
        at = self._clock() if at is None else at
        self._behind = min(self._behind, self._clock() - at)
        return handler(data, at) if handler else ""

    def _on_run_planned(self, data: Mapping[str, Any], at: float) -> str:
        self._halted = False
        names = [str(name) for name in data.get("stages", ())]
        self._stages = {name: self._stages.get(name, StageLine(name)) for name in names}
        return f"planned: {', '.join(names)}"

    def _on_run_estimated(self, data: Mapping[str, Any], at: float) -> str:
        stages = data.get("stages", ())
        for stage in stages:
            self._line(stage).expected_seconds = float(stage.get("seconds", 0))
        whole, low, high = (
            about(sum(float(stage.get(name, 0)) for stage in stages))
            for name in ("seconds", "seconds_low", "seconds_high")
        )
        return f"expected: {whole} ({low} to {high})"

    def _on_stage_started(self, data: Mapping[str, Any], at: float) -> str:
        self._halted = False
        line = self._line(data)
        line.begin(at)
        return f"{line.name}: started"

    def _on_progress(self, data: Mapping[str, Any], at: float) -> str:
        line = self._line(data)
        began = line.advance(str(data.get("phase", "")), int(data.get("done", 0)), int(data.get("total", 0)), at)
        return f"{line.name}: {line.phase}" if began else ""

    def _on_stage_finished(self, data: Mapping[str, Any], at: float) -> str:
        line = self._line(data)
        line.status, line.phase = ("cached" if data.get("cached") else "succeeded"), ""
        line.seconds, line.peak_memory_bytes = data.get("seconds"), data.get("peak_memory_bytes")
        line.peak_gpu_memory_bytes = data.get("peak_gpu_memory_bytes")
        cost = _cost(line)
        return f"{line.name}: {line.status}{f' ({cost})' if cost else ''}"

    def _on_notice(self, data: Mapping[str, Any], at: float) -> str:
        return f"note: {data.get('message', '')}"

    def _on_run_failed(self, data: Mapping[str, Any], at: float) -> str:
        return self._halt("failed")

    def _on_job_failed(self, data: Mapping[str, Any], at: float) -> str:
        return self._halt("failed")

    def _on_job_cancelled(self, data: Mapping[str, Any], at: float) -> str:
        return self._halt("cancelled")

    def _on_job_paused(self, data: Mapping[str, Any], at: float) -> str:
        return self._halt("paused")

    def _on_job_queued(self, data: Mapping[str, Any], at: float) -> str:
        """Once more: what an attempt that was lost, paused or failed left open is still to be done."""
        self._halt("pending", of=("running", *INTERRUPTED))
        return "queued"

    def _halt(self, status: str, of: Collection[str] = ("running",)) -> str:
        self._halted = True
        for line in self._stages.values():
            if line.status in of:
                line.set_aside(status)
        return status

    def _line(self, data: Mapping[str, Any]) -> StageLine:
        name = str(data.get("stage", ""))
        return self._stages.setdefault(name, StageLine(name))

    def left(self) -> float | None:
        """Seconds until the run ends; None where it does not run, some stage was not estimated, or none is left."""
        if self._halted:
            return None
        now, ahead = self._now(), [line for line in self._lines() if line.status in ("pending", "running")]
        if not ahead or any(line.expected_seconds is None for line in ahead):
            return None
        return sum((line.left(now) if line.status == "running" else line.expected_seconds) or 0.0 for line in ahead)

    def grid(self) -> Grid:
        """The stages as they are now."""
        now = self._now()
        rows: list[tuple[object, ...]] = [_row(line, now) for line in self._lines()]
        if (left := self.left()) is not None:
            rows.append(("", "", "", "", f"{about(left)} left in all"))
        return Grid((), rows)

    def __rich__(self) -> Table:
        return self.grid().__rich__()

    def _repr_html_(self) -> str:
        return self.grid()._repr_html_()

    def _now(self) -> float:
        return self._clock() - (self._behind if math.isfinite(self._behind) else 0.0)

    def _lines(self) -> list[StageLine]:
        """A copy: on a terminal they are drawn from another thread."""
        return list(self._stages.values())


def about(seconds: float) -> str:
    """A time that was not measured: to the second from ten on."""
    return format_seconds(round(seconds) if seconds >= 10 else round(seconds, 1))


def _row(line: StageLine, now: float) -> tuple[object, ...]:
    bar: object = Bar(line.done, line.total) if line.phase and line.total else ""
    left = line.left(now) if line.status == "running" else None
    last = _cost(line) if left is None else f"{about(left)} left"
    return line.name, line.status, line.phase, bar, last


def _cost(line: StageLine) -> str:
    if line.seconds is None:
        return f"about {about(line.expected_seconds)}" if line.expected_seconds else ""
    peaks = format_peaks(line.peak_memory_bytes, line.peak_gpu_memory_bytes) if line.peak_memory_bytes else ""
    memory = f", {peaks} peak" if peaks else ""
    return f"{format_seconds(line.seconds)}{memory}"
