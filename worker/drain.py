"""Drain: the main process is told to stop, and the pool's child that runs a job has to hear of it.

A warm shutdown waits for running tasks without telling them. The event is made before the pool forks, so that both
sides share it; a file or a signal would need the child's name.
"""

import multiprocessing
import threading
from types import TracebackType
from typing import Self

from worker.engine_process import Inbox
from worker.heartbeat import Order

LOOK_seconds = 0.25

_draining = multiprocessing.get_context("fork").Event()


def begin() -> None:
    """Tell every process of this worker to give back what it holds."""
    _draining.set()


def is_on() -> bool:
    """Whether this worker takes no new job."""
    return _draining.is_set()


class DrainWatch:
    """Puts `Order.RELEASE` into the inbox once the worker drains."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._over = threading.Event()
        self._thread = threading.Thread(name="drain-watch", target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_seconds):
            if _draining.is_set():
                self._inbox.put(Order.RELEASE)
                return
