"""Removes from the artifact store what the database has given up: deleted jobs, and what lost attempts left.

Not at once. A worker that does not know yet that it lost its claim may still be writing, and a backup that copies the
store after the database needs what the database named.
"""

import logging
import threading

from api.errors import StoreAway
from api.files import ArtifactStore
from api.store import removals
from api.store.session import Sessions
from worker.heartbeat import UNREACHABLE

log = logging.getLogger(__name__)


class Removals:
    """Two of them at one time are harmless: what is gone stays gone."""

    def __init__(self, store: ArtifactStore, sessions: Sessions, *, delay_seconds: float) -> None:
        self._store = store
        self._sessions = sessions
        self._delay_seconds = delay_seconds
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Carry them out on a thread, because a store may take its time; nothing if one is still at it."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(name="removals", target=self._carry_out, daemon=True)
            self._thread.start()

    def _carry_out(self) -> None:
        try:
            self.carry_out()
        except UNREACHABLE as error:
            log.warning("removals wait for the database: %s", type(error).__name__)

    def carry_out(self) -> int:
        """Remove what is due; how many prefixes. A store that does not answer is asked again in the next round."""
        with self._sessions() as session:
            due = removals.due(session, self._delay_seconds)
        for done, prefix in enumerate(due):
            try:
                self._store.remove(prefix)
            except StoreAway as error:
                log.warning("%s is not removed yet: %s", prefix, error.message)
                with self._sessions.begin() as session:
                    removals.put_off(session, prefix)
                return done
            log.info("removed from the artifact store: %s", prefix)
            with self._sessions.begin() as session:
                removals.forget(session, prefix)
        return len(due)
