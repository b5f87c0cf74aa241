"""A thread that looks for one thing: for what must be noticed while every other thread may be stuck in a call."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Self


class Lookout:
    """Use as a context. Calls `look` every period until it answers True, or until left."""

    def __init__(self, name: str, look: Callable[[], bool], *, period_seconds: float) -> None:
        self._look = look
        self._period_seconds = period_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(name=name, target=copy_context().run, args=(self._watch,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(self._period_seconds)

    def _watch(self) -> None:
        while not self._over.wait(self._period_seconds):
            if self._look():
                return
