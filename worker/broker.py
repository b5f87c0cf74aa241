"""The relay's way to the broker: one connection, thrown away after any trouble, so that the next one declares afresh.

FLUSHALL takes the bindings of the queues with it. A connection remembers what it declared, and would go on sending
to nobody; a new one writes the bindings again.
"""

from types import TracebackType
from typing import Any, Self

from celery import Celery
from kombu import Connection
from kombu.exceptions import InconsistencyError, KombuError
from redis.exceptions import RedisError

from worker.conf import QUEUES

_IMPATIENT = {"socket_timeout": 10, "max_retries": 1, "interval_start": 0, "interval_step": 0}
"""The relay tries again by itself, and holds its rows locked while it sends."""


class BrokerDown(Exception):
    """The broker did not take the message. It stays in the outbox."""


class Broker:
    """Sends task messages. Use it as a context: leaving it closes the connection."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, topic: str, payload: dict[str, Any]) -> None:
        """One message to the queue of `topic`, which must be one of ours. Raises `BrokerDown`."""
        try:
            self._app.send_task(
                topic, kwargs=payload, queue=QUEUES[topic], connection=self._open(), retry=False, ignore_result=True
            )
        except (KombuError, InconsistencyError, RedisError, OSError) as error:
            self.close()
            raise BrokerDown(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Forget the connection and everything declared on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._app.connection_for_write(transport_options=_IMPATIENT)
        return self._connection
