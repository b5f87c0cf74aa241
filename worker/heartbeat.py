"""Keeps a lease alive from a thread of its own, and carries orders back: pause, cancel, stop, it is not ours."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from enum import IntEnum
from types import TracebackType
from typing import Self

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError

from api.errors import Fenced
from worker.engine_process import Inbox

log = logging.getLogger(__name__)

UNREACHABLE = (OperationalError, InterfaceError, InternalError, TimeoutError)
"""What SQLAlchemy raises when the database does not answer: wait and try again, the fence decides.

`InternalError` is a primary that has become a standby, or a transaction that the server ended while we were stopped.
"""


class Order(IntEnum):
    """Why an engine has to stop before its end. A higher one overrides a lower one."""

    RELEASE = 1
    """The worker is draining: give the job back."""
    PAUSE = 2
    """The owner wants it set aside."""
    TIME_OUT = 3
    """The run has used up the time that its recipe allows."""
    CANCEL = 4
    """The owner wants it ended."""
    ABANDON = 5
    """The job is not ours any more: stop at once, write nothing."""


class Heartbeat:
    """Calls `renew` every period until left, and measures the silence since the last success."""

    def __init__(self, renew: Callable[[], Order | None], *, period_seconds: float, inbox: Inbox) -> None:
        self._renew = renew
        self._period_seconds = period_seconds
        self._inbox = inbox
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(name="heartbeat", target=copy_context().run, args=(self._beat,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(self._period_seconds)

    @property
    def silence_seconds(self) -> float:
        """Since the start of the last renewal that succeeded."""
        return time.monotonic() - self._renewed

    def _beat(self) -> None:
        while not self._over.wait(self._period_seconds):
            started = time.monotonic()
            try:
                order = self._renew()
            except Fenced:
                self._inbox.put(Order.ABANDON)
                return
            except UNREACHABLE as error:
                log.warning("lease not renewed for %.0f s: %s", self.silence_seconds, type(error).__name__)
                continue
            self._renewed = started
            if order is not None:
                self._inbox.put(order)
