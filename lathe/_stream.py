"""Following a job's history over server-sent events, without I/O: decode lines, remember where to go on."""

from dataclasses import dataclass, field

from pydantic import ValidationError

from lathe._retry import backoff
from lathe.errors import BadResponse, LatheError
from lathe.models import JobEvent

MAX_EVENT_bytes = 1024 * 1024


@dataclass
class Cursor:
    """How far a job's history has been read; survives the connections that it is read over."""

    seq: int = 0
    """Number of the last event that was given out."""
    ended: bool = False
    """The service said that there will be no more."""
    drops: int = 0
    """Connections lost since the last event."""
    patience: int = 8
    _kind: str = field(default="", init=False)
    _data: list[str] = field(default_factory=list, init=False)

    def begin(self) -> None:
        """A new connection: half an event of the last one is forgotten, and will be sent again."""
        self._kind, self._data = "", []

    def feed(self, line: str) -> JobEvent | None:
        """Take one line of the stream, without its end; an event when the line completes one that is new."""
        if line:
            self._collect(line)
            return None
        kind, data = self._kind, "\n".join(self._data)
        self.begin()
        if kind == "end":
            self.ended = True
            return None
        return self._advance(data) if data else None

    def accept(self, event: JobEvent) -> bool:
        """Whether the event is new; if so, it is where to go on from."""
        if event.seq <= self.seq:
            return False
        self.seq, self.drops = event.seq, 0
        return True

    def dropped(self, error: LatheError | None = None) -> float:
        """Seconds to wait before the next connection; raises `error` when too many were lost in a row."""
        if error is not None and self.drops >= self.patience:
            raise error
        self.drops += 1
        return backoff(self.drops - 1)

    def _collect(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
            if sum(map(len, self._data)) > MAX_EVENT_bytes:
                raise BadResponse("the event stream sent an event larger than 1 MiB", remedy="update this package")

    def _advance(self, data: str) -> JobEvent | None:
        try:
            event = JobEvent.model_validate_json(data)
        except ValidationError as error:
            raise BadResponse(
                f"the event stream sent something else than an event: {data[:80]!r}", remedy="update this package"
            ) from error
        return event if self.accept(event) else None
