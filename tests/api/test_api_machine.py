"""A Hypothesis state machine: owner, workers, reconciler and time do as they please; the invariants hold after each."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans
from sqlalchemy import func, select, text, update

from api import lifecycle
from api.errors import Conflict, Fenced
from api.lifecycle import ArtifactFile, Claim
from api.store import artifacts, events, jobs
from api.store.models import Attempt, Job
from api.store.session import Sessions
from lathe.models import TERMINAL
from optcore.errors import Failure
from optcore.events import StageStarted
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
LOST = Failure(kind="infrastructure", code="stage_crashed", message="died", retryable=True)
WRONG = Failure(kind="user_error", code="recipe_invalid", message="no")


class OneJob(RuleBasedStateMachine):
    """One job, any number of claims of it, old and new."""

    sessions: Sessions
    recipe: Recipe
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        with self.sessions.begin() as session:
            self.job_id = lifecycle.submit(session, "acme", self.recipe).id
        self.last: Claim | None = None
        self.ended: str | None = None

    @rule(target=claims)
    def claim(self) -> object:
        with self.sessions.begin() as session:
            claim = lifecycle.claim(session, self.job_id, "w")
        if claim is None:
            return multiple()
        assert self.last is None or claim.epoch == self.last.epoch + 1
        self.last = claim
        return claim

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        self._write(claim, lambda session: lifecycle.renew(session, claim))

    @rule(claim=claims)
    def record(self, claim: Claim) -> None:
        self._write(claim, lambda session: lifecycle.record(session, claim, [StageStarted(stage="s", key="k")]))

    @rule(claim=consumes(claims), digest=booleans())
    def finish(self, claim: Claim, digest: bool) -> None:
        file = ArtifactFile("config.json", claim.epoch, "a" * 64)
        self._write(claim, lambda session: lifecycle.finish(session, claim, str(digest), [file]))

    @rule(claim=consumes(claims), retryable=booleans())
    def fail(self, claim: Claim, retryable: bool) -> None:
        self._write(claim, lambda session: lifecycle.fail(session, claim, LOST if retryable else WRONG))

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        self._write(claim, lambda session: lifecycle.release(session, claim))

    @rule(claim=claims)
    def stop_because_cancelled(self, claim: Claim) -> None:
        self._write(claim, lambda session: lifecycle.cancelled(session, claim))

    @rule()
    def owner_cancels(self) -> None:
        try:
            with self.sessions.begin() as session:
                assert lifecycle.request_cancel(session, "acme", self.job_id).status in {"cancelling", "cancelled"}
        except Conflict:
            assert self._job().status in {"succeeded", "failed"}

    @rule()
    def a_minute_of_silence(self) -> None:
        with self.sessions.begin() as session:
            past = func.now() - text("interval '1 second'")
            mine = (Job.id == self.job_id) & Job.lease_until.is_not(None)
            session.execute(update(Job).where(mine).values(lease_until=past))
            assert lifecycle.expire_leases(session) <= 1

    @invariant()
    def history_has_no_gaps_and_ends_once(self) -> None:
        job = self._job()
        with self.sessions() as session:
            lines = events.after(session, self.job_id, 0, 1000)
        assert [line.seq for line in lines] == list(range(1, job.last_seq + 1))
        statuses = [line.type.removeprefix("job.") for line in lines if line.type.startswith("job.")]
        assert statuses[-1] == job.status
        assert [status for status in statuses if status in TERMINAL] in ([], [job.status])

    @invariant()
    def what_is_over_stays_over(self) -> None:
        status = self._job().status
        assert self.ended in (None, status)
        self.ended = status if status in TERMINAL else None

    @invariant()
    def one_attempt_runs_exactly_while_the_job_is_held(self) -> None:
        job = self._job()
        with self.sessions() as session:
            running = session.scalars(
                select(Attempt.epoch).where(Attempt.job_id == self.job_id, Attempt.state == "running")
            ).all()
            files = artifacts.page(session, self.job_id, limit=9)
        assert list(running) == ([job.epoch] if job.status in {"running", "cancelling"} else [])
        assert [file.bytes for file in files] == ([job.epoch] if job.status == "succeeded" else [])

    def _job(self) -> Job:
        with self.sessions() as session:
            job = jobs.find(session, self.job_id)
        assert job is not None
        return job

    def _write(self, claim: Claim, call: object) -> None:
        """Only the newest claim may write."""
        assert callable(call)
        try:
            with self.sessions.begin() as session:
                call(session)
        except Fenced:
            return
        assert claim == self.last


def test_any_order_of_what_can_happen(sessions: Sessions, recipe: Recipe) -> None:
    OneJob.sessions, OneJob.recipe = sessions, recipe
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(
        OneJob, settings=settings(max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=quiet)
    )
