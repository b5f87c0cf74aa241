"""Notices an engine that says nothing any more: a deadlock, a driver that hangs, a data loader that died."""

import re
import time
from collections.abc import Iterable, Mapping

from optcore.events import AnyEvent, Metric, Progress
from worker.settings import EnginePhase

FRAMES = 8
_THREAD = re.compile(r"^(Current thread|Thread) 0x")


class Watchdog:
    """Hears every event; the time that an engine may be silent depends on what it does."""

    def __init__(self, stall_seconds: Mapping[EnginePhase, float]) -> None:
        self._stall_seconds = stall_seconds
        self._heard = time.monotonic()
        self.phase: EnginePhase = "starting"

    def hear(self, event: AnyEvent) -> None:
        """A sign of life, unless a clock made it: that one goes on where the work hangs."""
        if isinstance(event, Metric) and event.is_sample:
            return
        self._heard = time.monotonic()
        if isinstance(event, Progress):
            self.phase = event.phase
        elif event.event.startswith("stage_"):
            self.phase = "starting"

    @property
    def silent_seconds(self) -> float:
        """Since the last event."""
        return time.monotonic() - self._heard

    @property
    def has_lost_patience(self) -> bool:
        """Whether it has been silent for too long."""
        limit = self._stall_seconds[self.phase]
        return 0 < limit <= self.silent_seconds


def last_frames(log_lines: Iterable[str]) -> str:
    """From the dumps in a log, the innermost frames of each process's main thread."""
    kept: list[str] = []
    room = 0
    for line in log_lines:
        if _THREAD.match(line):
            room = FRAMES if line.startswith("Current") else 0
        elif room and line.startswith("  File "):
            kept.append(line)
            room -= 1
        else:
            room = 0
    return "\n".join(kept)
