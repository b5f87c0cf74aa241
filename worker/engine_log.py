"""The log of one attempt: the engine's standard error, bounded on disk, its last lines kept for the failure."""

import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TAIL_LINES = 400
"""Enough for the stacks of all threads."""
LAST_LINES = 20
LINE_LIMIT = 8 * 1024  # bytes


class EngineLog:
    """Appends lines to a file up to a limit. What comes after is counted, and its last lines are written at the end.

    Use as a context: leaving it closes the file.
    """

    def __init__(self, path: Path, *, limit_bytes: int, news_limit_bytes: int = 0, secrets: Sequence[str] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._file = path.open("ab", buffering=0)
        self._room_bytes = limit_bytes - self._file.tell()
        self._dropped_bytes = 0
        self._news: list[str] = []
        self._news_room = news_limit_bytes
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._secrets = tuple(secret for secret in secrets if secret)
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Add one line; secrets are blanked, undecodable bytes replaced, overlong lines cut."""
        text = line[:LINE_LIMIT].decode("utf-8", "replace").rstrip("\n")
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        data = text.encode() + b"\n"
        with self._lock:
            self._tail.append(text)
            self._report(text)
            if len(data) > self._room_bytes or not self._append(data):
                self._dropped_bytes += len(data)

    def _append(self, data: bytes) -> bool:
        """Whether the file took it; on a full disk the engine must still be listened to."""
        if self._file.closed:
            return False
        try:
            self._file.write(data)
        except OSError:
            return False
        self._room_bytes -= len(data)
        return True

    def take_news(self) -> str:
        """The lines since the last call, as long as they are within the limit for an attempt."""
        with self._lock:
            news, self._news = self._news, []
        return "".join(news)

    def _report(self, text: str) -> None:
        if self._news_room <= 0:
            return
        self._news_room -= len(text) + 1
        self._news.append(f"{text}\n".replace("\0", "\ufffd"))
        if self._news_room <= 0:
            self._news.append("[the rest is in the log file on the worker]\n")

    @property
    def lines(self) -> list[str]:
        """The last ones, as many as are kept."""
        with self._lock:
            return list(self._tail)

    def tail(self, lines: int = 5, limit_chars: int = 1500) -> str:
        """The last lines that are not empty."""
        with self._lock:
            kept = [line for line in self._tail if line.strip()][-lines:]
        return "\n".join(kept)[-limit_chars:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what the limit kept out, as a count and its last lines."""
        with self._lock:
            if self._dropped_bytes and not self._file.closed:
                last = list(self._tail)[-LAST_LINES:]
                note = [f"[{self._dropped_bytes} bytes left out; the last lines were]", *last]
                self._append("\n".join(note).encode() + b"\n")
            self._file.close()
