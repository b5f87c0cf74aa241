"""A Hypothesis state machine: owner, workers, reconciler and time do as they please; the invariants hold after each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, sampled_from
from machine_checks import JOB_MOVES, PUSH_MOVES, Moves, check, nothing_is_left
from machine_model import DEEDS, OWNER, PUBLISHER, WORKER, Expected, JUMPS_seconds, LIMIT_seconds, STAGE_seconds, Table
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from api import lifecycle
from api.errors import Conflict, Fenced, NotFound
from api.lifecycle import ArtifactFile, Claim, PublishClaim, Renewal
from api.store.models import Job, OutboxMessage, Removal, Stage
from api.store.session import Sessions
from optcore.errors import Failure
from optcore.events import StageFinished, StageStarted
from optcore.recipe import Recipe, recipe_from

pytestmark = pytest.mark.integration
LOST = Failure(kind="infrastructure", code="stage_crashed", message="died", retryable=True)
WRONG = Failure(kind="user_error", code="recipe_invalid", message="no", stage="1-ptq")
LIMITS = {"max_run_seconds": LIMIT_seconds, "max_queue_seconds": LIMIT_seconds}
PLACE = {"repo_id": "me/x"}


def _stage(session: Session, claim: Claim, name: str, *, done: bool) -> None:
    """As an engine runs it, which finds what is finished and does not run it again."""
    row = session.get(Stage, (claim.job_id, name))
    found = row is not None and row.seconds is not None
    seconds = 0 if found else STAGE_seconds
    finished = StageFinished(stage=name, key=name, cached=found, seconds=seconds, peak_memory_bytes=1)
    lifecycle.record(session, claim, [finished if found or done else StageStarted(stage=name, key=name)])


def _finish(session: Session, claim: Claim, digest: str) -> None:
    lifecycle.finish(session, claim, digest, [ArtifactFile("config.json", claim.epoch, "a" * 64)])


ASK: Mapping[str, Callable[[Session, str, str], Any]] = {
    "cancel": lifecycle.request_cancel,
    "pause": lifecycle.request_pause,
    "resume": lifecycle.resume,
    "retry": lifecycle.retry,
    "delete": lifecycle.delete,
}
SAY: Mapping[str, Callable[[Session, Claim, str], Any]] = {
    "renew": lambda session, claim, _: lifecycle.renew(session, claim),
    "log": lambda session, claim, _: lifecycle.record_log(session, claim, "a line\n"),
    "begin_stage": partial(_stage, done=False),
    "end_stage": partial(_stage, done=True),
    "finish": _finish,
    "fail": lambda session, claim, _: lifecycle.fail(session, claim, WRONG),
    "lose": lambda session, claim, _: lifecycle.fail(session, claim, LOST),
    "release": lambda session, claim, _: lifecycle.release(session, claim),
    "paused": lambda session, claim, _: lifecycle.paused(session, claim),
    "cancelled": lambda session, claim, _: lifecycle.cancelled(session, claim),
    "out_of_time": lambda session, claim, _: lifecycle.out_of_time(session, claim),
}
SAY_OF_PUSH: Mapping[str, Callable[[Session, PublishClaim], None]] = {
    "renew_push": lifecycle.renew_publish,
    "note": lambda session, claim: lifecycle.note_pull_requests(session, claim, {"me/x@main": 7}),
    "succeed": lambda session, claim: lifecycle.publish_succeeded(session, claim, "https://hub/me/x", "c0ffee"),
    "refuse": lambda session, claim: lifecycle.publish_failed(session, claim, WRONG),
    "put_off": lambda session, claim: lifecycle.publish_failed(session, claim, LOST),
}


def _pick(some: Sequence[Any], number: int) -> Any:
    return some[number % len(some)]


PUSH = "claim finish publish push"
OPENINGS = (
    *("", "claim begin_stage", "claim silence renew reconcile", "claim end_stage fail"),
    *("claim pause", "claim pause", "claim begin_stage pause", "claim cancel", "claim begin_stage cancel"),
    *("claim lose " * 3, "claim silence reconcile " * 3, f"{PUSH} {'put_off push ' * 4}"),
    *(PUSH, f"{PUSH} refuse", f"{PUSH} silence reconcile", f"{PUSH} silence renew_push reconcile"),
)
"""Jobs come to us at different places of their life, so that few steps lead to each."""

numbers = integers(0, 2**16)
"""What a step picks with. Choices that depend on the state would be spoilt where Hypothesis varies an earlier one."""


def some_row(table: Table, state: str, number: int) -> str:
    """Any row of a table but, half of the time, one that leads on from this state; each way as often."""
    rows = list(table)
    ways = sorted({targets[state] for targets in table.values() if targets.get(state, state) != state})
    if ways and number % 2:
        way = _pick(ways, number // 2)
        rows = [row for row in rows if table[row].get(state) == way]
    return str(_pick(rows, number // 64))


class OneJob(RuleBasedStateMachine):
    """One job, any number of claims of it and of its publishing, old and new. When it is deleted, another begins."""

    sessions: ClassVar[Sessions]
    recipe: ClassVar[Recipe]
    moves: ClassVar[Moves]
    push_moves: ClassVar[Moves]

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[Claim] = []
        self.pushes: list[PublishClaim] = []

    @initialize(place=booleans(), opening=sampled_from(OPENINGS))
    def some_way_into_its_life(self, place: bool, opening: str) -> None:
        wish = {"limits": LIMITS, "publish": PLACE if place else None}
        recipe = recipe_from(self.recipe.model_dump(mode="json") | wish)
        self.job_id = self._do(lambda session: lifecycle.submit(session, "acme", recipe)).id
        self.expected = Expected(place)
        for word in opening.split():
            self._play(word)

    @rule(
        who=numbers,
        word=numbers,
        nth=sampled_from((1, 1, 1, 1, 2, 3)),
        what=sampled_from("ab"),
        place=booleans(),
        opening=sampled_from(OPENINGS),
    )
    def somebody_does_something(self, who: int, word: int, nth: int, what: str, place: bool, opening: str) -> None:
        """One rule, because of many Hypothesis turns most off in each example, and few would get anywhere."""
        expected = self.expected
        match _pick([*expected.turn * 4, *DEEDS], who):
            case "owner asks":
                self._ask(some_row(OWNER, expected.status, word), place, opening)
            case "worker claims":
                self._claim()
            case "worker says" if self.claims:
                self._say(some_row(WORKER, expected.status if nth == 1 else "", word), nth, what)
            case "publisher claims":
                self._claim_push()
            case "publisher says" if self.pushes:
                self._say_of_push(some_row(PUBLISHER, expected.publish, word), nth)
            case "time passes":
                self._pass_time(_pick(JUMPS_seconds, word))
            case "reconciler looks":
                self._reconcile()

    @invariant()
    def everything_that_must_hold_does(self) -> None:
        with self.sessions() as session:
            moves, push_moves = check(session, self.job_id, self.expected)
        self.moves.update(moves)
        self.push_moves.update(push_moves)

    def teardown(self) -> None:
        with self.sessions.begin() as session:
            for table in (Job, OutboxMessage, Removal):
                session.execute(delete(table))

    def _play(self, word: str) -> None:
        """One step of an opening."""
        match word:
            case "claim":
                self._claim()
            case "push":
                self._claim_push()
            case "silence":
                self._pass_time(650)
            case "reconcile":
                self._reconcile()
            case _ if word in OWNER:
                self._ask(word, True, "")
            case _ if word in WORKER:
                self._say(word)
            case _:
                self._say_of_push(word)

    def _ask(self, verb: str, place: bool, opening: str) -> None:
        note(f"its owner asks: {verb}")
        refusal = None if self.expected.owner_asks(verb, place) else Conflict
        call = partial(lifecycle.request_publish, where=PLACE if place else None) if verb == "publish" else ASK[verb]
        job = self._do(lambda session: call(session, "acme", self.job_id), refusal)
        if self.expected.status == "gone":
            self._do(lambda session: nothing_is_left(session, self.job_id))
            self._nothing_can_be_asked()
            self.some_way_into_its_life(place, opening)
        elif refusal is None:
            assert (job.status, job.publish_status) == (self.expected.status, self.expected.publish)

    def _claim(self) -> None:
        note("a worker looks for a job")
        claim = self._do(lambda session: lifecycle.claim(session, self.job_id, "w"))
        assert (claim is not None) == self.expected.worker_claims()
        self.claims += [claim] if claim else []

    def _say(self, word: str, nth: int = 1, what: str = "a") -> None:
        claim = self.claims[-min(nth, len(self.claims))]
        note(f"worker {self._epoch(claim)} says: {word} {what}")
        refusal = None if self.expected.worker_says(word, self._epoch(claim), what) else Fenced
        told = self._do(lambda session: SAY[word](session, claim, what), refusal)
        if refusal is None and word == "renew":
            status, is_out_of_time = self.expected.status, self.expected.is_out_of_time
            assert told == Renewal(status == "cancelling", status == "pausing", is_out_of_time)

    def _claim_push(self) -> None:
        note("a worker looks for a push")
        claim = self._do(lambda session: lifecycle.claim_publish(session, self.job_id, "w"))
        assert (claim is not None) == self.expected.publisher_claims()
        self.pushes += [claim] if claim else []
        assert claim is None or (claim.artifact_epoch, claim.artifact_digest) == self.expected.result

    def _say_of_push(self, word: str, nth: int = 1) -> None:
        claim = self.pushes[-min(nth, len(self.pushes))]
        note(f"publisher {self._epoch(claim)} says: {word}")
        refusal = None if self.expected.publisher_says(word, self._epoch(claim)) else Fenced
        self._do(lambda session: SAY_OF_PUSH[word](session, claim), refusal)

    def _pass_time(self, seconds: int) -> None:
        note(f"{seconds} s pass")
        clocks = (Job.lease_until, Job.claimed_at, Job.queued_at, Job.publish_wake_at)
        earlier = {clock: clock - timedelta(seconds=seconds) for clock in clocks}
        self._do(lambda session: session.execute(update(Job).where(Job.id == self.job_id).values(earlier)))
        self.expected.time_passes(seconds)

    def _reconcile(self) -> None:
        note("the reconciler looks")
        late, lost = self.expected.reconciler_looks()
        self._do(lifecycle.republish_stuck)
        assert self._do(lifecycle.enforce_deadlines) == late
        assert self._do(lifecycle.expire_leases) == lost

    def _epoch(self, claim: Claim | PublishClaim) -> int:
        """0 where it is of a job that is gone."""
        return claim.epoch if claim.job_id == self.job_id else 0

    def _nothing_can_be_asked(self) -> None:
        for verb in (*ASK.values(), partial(lifecycle.request_publish, where=PLACE)):
            self._do(lambda session, verb=verb: verb(session, "acme", self.job_id), NotFound)
        for claim in (lifecycle.claim, lifecycle.claim_publish):
            assert self._do(lambda session, claim=claim: claim(session, self.job_id, "w")) is None

    def _do(self, call: Callable[[Session], Any], refusal: type[Exception] | None = None) -> Any:
        """What the call answers. Where it is to be refused it must be, with just that."""
        with pytest.raises(refusal) if refusal else nullcontext(), self.sessions.begin() as session:
            return call(session)


@pytest.mark.timeout(600)
def test_any_order_of_what_can_happen(sessions: Sessions, recipe: Recipe) -> None:
    """A failure is shrunk for up to five minutes.

    Hypothesis takes numbers from modules that are loaded, so the steps depend a little on what ran before in this
    process: three times as many are taken as reach every move by themselves.
    """
    OneJob.sessions, OneJob.recipe = sessions, recipe
    OneJob.moves, OneJob.push_moves = set(), set()
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    steps = settings(max_examples=36, stateful_step_count=180, derandomize=True, deadline=None)
    run_state_machine_as_test(OneJob, settings=settings(steps, suppress_health_check=quiet))
    assert (OneJob.moves, OneJob.push_moves) == (JOB_MOVES, PUSH_MOVES), "all that may happen did"
