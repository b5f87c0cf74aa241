"""Following a job's history or log over server-sent events, without I/O: decode lines, remember where to go on."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import ValidationError

from lathe._retry import backoff, worth_retrying
from lathe.errors import BadResponse, LatheError
from lathe.models import JobEvent, LogChunk

MAX_EVENT_bytes = 1024 * 1024


L = TypeVar("L", JobEvent, LogChunk)


@dataclass
class Cursor(Generic[L]):
    """How far the numbered lines of a job have been read; survives the connections that it is read over."""

    line: type[L]
    seq: int = 0
    """Number of the last line that was given out."""
    ended: bool = False
    """The service said that there will be no more."""
    drops: int = 0
    """Connections lost since the last line."""
    patience: int = 8
    _kind: str = field(default="", init=False)
    _data: list[str] = field(default_factory=list, init=False)

    def begin(self) -> None:
        """A new connection: half an event of the last one is forgotten, and will be sent again."""
        self._kind, self._data = "", []

    def feed(self, line: str) -> L | None:
        """Take one line of the stream, without its end; what it completes, when that is new."""
        if line:
            self._collect(line)
            return None
        kind, data = self._kind, "\n".join(self._data)
        self.begin()
        if kind == "end":
            self.ended = True
            return None
        return self._advance(data) if data else None

    def accept(self, event: L) -> bool:
        """Whether the event is new; if so, it is where to go on from."""
        if event.seq <= self.seq:
            return False
        self.seq, self.drops = event.seq, 0
        return True

    def dropped(self, error: LatheError | None = None) -> float:
        """Seconds to wait before the next connection; raises `error` when it is for good, or the last of too many."""
        if error is not None and (self.drops >= self.patience or not worth_retrying(error)):
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

    def _advance(self, data: str) -> L | None:
        try:
            event = self.line.model_validate_json(data)
        except ValidationError as error:
            raise BadResponse(
                f"the event stream sent something else than an event: {data[:80]!r}", remedy="update this package"
            ) from error
        return event if self.accept(event) else None
