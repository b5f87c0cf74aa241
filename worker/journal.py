"""Events on their way to the database: batched, and thinned where only the newest says anything."""

from optcore.events import AnyEvent, Metric, Progress

LIMIT = 10_000
BATCH = 500


class Journal:
    """Keeps the order of events; of progress reports in a row about one phase, only the last."""

    def __init__(self) -> None:
        self._events: list[AnyEvent] = []

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: AnyEvent) -> None:
        """Append one event. When the database is away for long, metrics beyond a limit are let go."""
        last = self._events[-1] if self._events else None
        if isinstance(event, Progress) and isinstance(last, Progress) and _same_phase(event, last):
            self._events[-1] = event
        elif not (isinstance(event, Metric | Progress) and len(self._events) >= LIMIT):
            self._events.append(event)

    def batch(self) -> tuple[AnyEvent, ...]:
        """The oldest events; they stay until `written` says so."""
        return tuple(self._events[:BATCH])

    def written(self, count: int) -> None:
        """Forget the oldest `count` events."""
        del self._events[:count]


def _same_phase(one: Progress, other: Progress) -> bool:
    return (one.stage, one.phase) == (other.stage, other.phase)
