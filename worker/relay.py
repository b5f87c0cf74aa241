"""Outbox -> broker: `python -m worker.relay`. The only sender of messages, and the clock of the reconciler.

A message is marked after it was sent, so a crash in between sends it twice; every task bears that. Any number of relays
may run: each takes rows that no other has locked.
"""

import logging
import signal
import threading
import time
from types import FrameType

import psycopg

from api.logs import configure
from api.store import outbox
from api.store.session import Sessions, make_engine, make_sessions
from worker.app import app
from worker.broker import Broker, BrokerDown
from worker.conf import QUEUES
from worker.context import settings as read_settings
from worker.heartbeat import UNREACHABLE
from worker.reconciler import Reconciler
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

AGAIN_seconds = 1.0
LISTENER = {"connect_timeout": 5, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class Relay:
    """Serves until told to stop, through any absence of the database or the broker."""

    def __init__(self, settings: WorkerSettings, sessions: Sessions, broker: Broker, reconciler: Reconciler) -> None:
        self._settings = settings
        self._sessions = sessions
        self._broker = broker
        self._reconciler = reconciler
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Return from `run` after the batch in hand."""
        self._stopped.set()

    def run(self) -> None:
        """Send what is due, again and again."""
        while not self._stopped.is_set():
            try:
                self._serve()
            except (psycopg.OperationalError, *UNREACHABLE) as error:
                log.warning("database away: %s", type(error).__name__)
                self._reconciler.database_was_away()
                self._stopped.wait(AGAIN_seconds)

    def _serve(self) -> None:
        with psycopg.connect(self._settings.database_url, autocommit=True, **LISTENER) as listener:  # type: ignore[arg-type]
            listener.execute(f"LISTEN {outbox.CHANNEL}")
            log.info("relay listens")
            while not self._stopped.is_set():
                self._send_all()
                self._reconciler.tick()
                for _ in listener.notifies(timeout=self._settings.relay_poll_seconds, stop_after=1):
                    pass

    def _send_all(self) -> None:
        try:
            while self._send_batch() and not self._stopped.is_set():
                pass
        except BrokerDown as error:
            log.warning("broker away: %s", error)
            self._stopped.wait(AGAIN_seconds)

    def _send_batch(self) -> int:
        """Send one batch and mark what the broker took, also when it stopped taking in the middle."""
        sent: list[int] = []
        with self._sessions.begin() as session:
            try:
                for message in outbox.take(session):
                    self._send(message.topic, message.payload)
                    sent.append(message.id)
            except BrokerDown:
                if not sent:
                    raise
            outbox.mark_published(session, sent)
        return len(sent)

    def _send(self, topic: str, payload: dict[str, object]) -> None:
        if topic in QUEUES:
            self._broker.send(topic, payload)
        else:
            log.error("no task is named %r: its message is dropped", topic)


def main() -> None:
    """The process: settings from the environment, SIGTERM or SIGINT ends it."""
    settings = read_settings()
    configure(settings.log_level)
    sessions = make_sessions(make_engine(settings.database_url, pool_size=2))
    with Broker(app) as broker:
        relay = Relay(settings, sessions, broker, Reconciler(settings, sessions))

        def stop(number: int, frame: FrameType | None) -> None:
            relay.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        while True:
            try:
                return relay.run()
            except Exception:  # the outermost loop: a bug in one row must not end the service
                log.exception("relay stumbled")
                time.sleep(AGAIN_seconds)


if __name__ == "__main__":
    main()
