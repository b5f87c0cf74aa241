"""Puts right what a lost worker, message or machine left behind, and forgets what is old.

Of several, one leads, by a lease in the database. Its steps are fenced transitions, so two leaders are harmless.
"""

import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy.orm import Session

from api import lifecycle
from api.files import open_store
from api.store import leases, retention, stage_costs, tallies, webhook_messages, webhooks
from api.store.session import Sessions
from worker.removals import Removals
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

NAME = "reconciler"
TERMS = 3
"""Periods that a leader may be silent for before another takes over."""


class Reconciler:
    """Call `tick` often; it acts when its period is over."""

    def __init__(
        self, settings: WorkerSettings, sessions: Sessions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._clock = clock
        self._holder = secrets.token_hex(8)
        delay_seconds = settings.removal_delay_seconds
        self._removals = Removals(open_store(settings), sessions, delay_seconds=delay_seconds)
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
        if not self._leads():
            self._database_since = None  # a new leader must see for itself that the database stays
            return
        self._count("announced again", lifecycle.republish_stuck)
        self._count("deadlines passed", lifecycle.enforce_deadlines)
        if self._database_since is None:
            self._database_since = now
        if now - self._database_since >= self._settings.lease_amnesty_seconds:
            self._count("leases expired", lifecycle.expire_leases)
        with self._sessions.begin() as session:
            tallies.fold(session)
        if now >= self._sweep_due:
            self._sweep_due = now + self._settings.sweep_seconds
            self._sweep()

    def _leads(self) -> bool:
        with self._sessions.begin() as session:
            term = leases.hold(session, NAME, self._holder, TERMS * self._settings.reconcile_seconds)
        return term is not None

    def _sweep(self) -> None:
        keep = self._settings
        self._count("rows that served their turn", retention.forget_served)
        self._count("costs of stages forgotten", stage_costs.forget_old)
        self._count("logs and metrics forgotten", partial(retention.forget_details, days=keep.detail_days))
        self._count("audit entries forgotten", partial(retention.forget_audit, days=keep.audit_days))
        if keep.job_days:
            self._count("jobs forgotten", partial(retention.forget_jobs, days=keep.job_days))
        self._count("webhook messages forgotten", partial(webhook_messages.forget, days=keep.webhook_days))
        self._count("rotated webhook secrets forgotten", webhooks.forget_old_secrets)
        self._removals.begin()

    def _count(self, what: str, act: Callable[[Session], int]) -> None:
        with self._sessions.begin() as session:
            count = act(session)
        if count:
            log.warning("%s: %d", what, count)
