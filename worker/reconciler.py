"""Puts right what a lost worker, message or machine left behind. Its steps are fenced transitions: two are harmless."""

import logging
import time
from collections.abc import Callable

from sqlalchemy.orm import Session

from api import lifecycle
from api.store.session import Sessions
from worker.leftovers import Leftovers
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)


class Reconciler:
    """Call `tick` often; it acts when its period is over."""

    def __init__(
        self, settings: WorkerSettings, sessions: Sessions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._leftovers = Leftovers(settings, sessions)
        self._due = self._sweep_due = 0.0
        self._database_since: float | None = None

    def database_was_away(self) -> None:
        """Nobody could renew a lease: give all of them one full term from the next success on."""
        self._database_since = None

    def tick(self) -> None:
        """One round when it is due. Raises what SQLAlchemy raises when the database does not answer."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + self._settings.reconcile_seconds
        self._count("announced again", lifecycle.republish_stuck)
        if self._database_since is None:
            self._database_since = now
        if now - self._database_since >= self._settings.lease_amnesty_seconds:
            self._count("leases expired", lifecycle.expire_leases)
        if now >= self._sweep_due:
            self._sweep_due = now + self._settings.sweep_seconds
            self._leftovers.sweep()

    def _count(self, what: str, act: Callable[[Session], int]) -> None:
        with self._sessions.begin() as session:
            count = act(session)
        if count:
            log.warning("%s: %d", what, count)
