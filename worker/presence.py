"""Tells the database that this process is alive, also while it has nothing to do."""

import logging
import threading
from typing import Any

from api.store import workers
from api.store.workers import Capacity
from worker import drain
from worker.capacity import disk_free_bytes
from worker.context import Context, context
from worker.heartbeat import UNREACHABLE

log = logging.getLogger(__name__)


def announce_presence(*, runs_engines: bool) -> None:
    """Start a thread that beats for as long as the process lives."""
    threading.Thread(name="presence", target=_beat, args=(runs_engines,), daemon=True).start()


def _beat(runs_engines: bool) -> None:
    here = context()
    offered = here.capacity if runs_engines else Capacity(here.capacity.host)
    pause = threading.Event()
    while True:
        state = _state(here) if runs_engines else {}
        try:
            with here.sessions.begin() as session:
                workers.beat(session, here.worker_id, offered, draining=drain.is_on(), **state)
        except UNREACHABLE as error:
            log.warning("presence not written: %s", type(error).__name__)
        pause.wait(here.settings.renew_seconds)


def _state(here: Context) -> dict[str, Any]:
    """What changes from beat to beat."""
    return {"unfit": here.fitness.trouble(), "disk_free_bytes": disk_free_bytes(here.settings.data_dir)}
