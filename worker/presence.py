"""Tells the database that this process is alive, also while it has nothing to do."""

import logging
import threading

from api.store import workers
from worker import drain
from worker.context import context
from worker.heartbeat import UNREACHABLE

log = logging.getLogger(__name__)


def announce_presence() -> None:
    """Start a thread that beats for as long as the process lives."""
    threading.Thread(name="presence", target=_beat, daemon=True).start()


def _beat() -> None:
    here = context()
    pause = threading.Event()
    while True:
        try:
            with here.sessions.begin() as session:
                workers.beat(session, here.worker_id, here.host, draining=drain.is_on())
        except UNREACHABLE as error:
            log.warning("presence not written: %s", type(error).__name__)
        pause.wait(here.settings.renew_seconds)
