"""The life of a job: claims race, fences hold, leases end, history has no gaps."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from api import lifecycle
from api.errors import Conflict, Fenced, NotFound
from api.lifecycle import ArtifactFile, Claim
from api.store import artifacts, events, jobs, outbox, stages
from api.store.models import Attempt, Job, OutboxMessage
from api.store.session import Sessions
from optcore.errors import Failure
from optcore.events import Notice, Progress, RecipeResolved, RunPlanned, StageFinished, StageStarted
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
FILES = [ArtifactFile("config.json", 2, "a" * 64), ArtifactFile("report.json", 3, "b" * 64)]
LOST = Failure(kind="infrastructure", code="stage_crashed", message="died", retryable=True)
WRONG = Failure(kind="user_error", code="recipe_invalid", message="no", stage="1-ptq")


def _do(sessions: Sessions, call: Callable[..., Any], *arguments: Any) -> Any:
    with sessions.begin() as session:
        return call(session, *arguments)


def _job(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        found = jobs.find(session, job_id)
    assert found is not None
    return found


def _types(sessions: Sessions, job_id: str) -> list[str]:
    with sessions() as session:
        lines = events.after(session, job_id, 0, 1000)
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    return [line.type for line in lines]


def _states(sessions: Sessions, job_id: str) -> Sequence[str]:
    with sessions() as session:
        return session.scalars(select(Attempt.state).where(Attempt.job_id == job_id).order_by(Attempt.epoch)).all()


def _at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs `work` in threads that start together."""
    gate = threading.Barrier(count)

    def run(number: int) -> Any:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_whole_run(sessions: Sessions, held: Claim) -> None:
    batch = [
        RunPlanned(stages=("0-fetch", "1-ptq")),
        RecipeResolved(recipe={"pinned": True}),
        StageStarted(stage="1-ptq", key="k"),
        Progress(stage="1-ptq", phase="calibrating", done=1, total=4),
        Progress(stage="1-ptq", phase="calibrating", done=2, total=4),
        StageFinished(stage="1-ptq", key="k", cached=False, seconds=1.5, peak_memory_bytes=7),
        StageFinished(stage="0-fetch", key="f", cached=True, seconds=0, peak_memory_bytes=0),
    ]
    _do(sessions, lifecycle.record, held, batch)
    _do(sessions, lifecycle.finish, held, "digest", FILES)
    job = _job(sessions, held.job_id)
    assert (job.status, job.artifact_digest, job.resolved, job.lease_until) == (
        "succeeded",
        "digest",
        {"pinned": True},
        None,
    )
    assert _types(sessions, held.job_id) == [
        *("job.queued", "job.running", "run_planned", "recipe_resolved", "stage_started", "progress"),
        *("stage_finished", "stage_finished", "job.succeeded"),
    ]
    with sessions() as session:
        assert [(s.name, s.status) for s in stages.of(session, [job.id])] == [
            ("0-fetch", "cached"),
            ("1-ptq", "succeeded"),
        ]
        assert [f.path for f in artifacts.page(session, job.id, limit=9)] == ["config.json", "report.json"]


def test_one_of_many_claims_wins(sessions: Sessions, job_id: str) -> None:
    claims = _at_once(8, lambda number: _do(sessions, lifecycle.claim, job_id, f"w{number}"))
    (won,) = [claim for claim in claims if claim]
    assert (won.epoch, won.attempt) == (1, 1)
    assert _job(sessions, job_id).worker_id == won.worker_id
    assert _types(sessions, job_id) == ["job.queued", "job.running"]


def test_events_of_many_writers_have_no_gaps(sessions: Sessions, held: Claim) -> None:
    started = StageStarted(stage="1-ptq", key="k")
    _at_once(8, lambda _: [_do(sessions, lifecycle.record, held, [started, started]) for _ in range(5)])
    assert len(_types(sessions, held.job_id)) == 2 + 80


def test_cancel_and_claim_race_to_one_of_two_ends(sessions: Sessions, recipe: Recipe) -> None:
    for _ in range(5):
        job_id = _do(sessions, lifecycle.submit, "acme", recipe).id
        race = [
            lambda job_id=job_id: _do(sessions, lifecycle.claim, job_id, "w"),
            lambda job_id=job_id: _do(sessions, lifecycle.request_cancel, "acme", job_id),
        ]
        claim, _cancelled = _at_once(2, lambda number, race=race: race[number]())
        assert _job(sessions, job_id).status == ("cancelling" if claim else "cancelled")


def test_a_lost_claim_is_fenced_everywhere(
    sessions: Sessions, held: Claim, let_lease_end: Callable[[str], None]
) -> None:
    let_lease_end(held.job_id)
    assert _do(sessions, lifecycle.expire_leases) == 1
    second = _do(sessions, lifecycle.claim, held.job_id, "w2")
    assert second.epoch == 2
    before = _types(sessions, held.job_id)
    for call, arguments in (
        (lifecycle.renew, ()),
        (lifecycle.record, ([StageStarted(stage="x", key="k")],)),
        (lifecycle.finish, ("digest", FILES)),
        (lifecycle.fail, (LOST,)),
        (lifecycle.cancelled, ()),
        (lifecycle.release, ()),
    ):
        with pytest.raises(Fenced):
            _do(sessions, call, held, *arguments)
    assert _types(sessions, held.job_id) == before
    assert not _do(sessions, lifecycle.renew, second).cancel_requested


def test_a_late_finish_is_kept_while_nobody_took_over(
    sessions: Sessions, held: Claim, let_lease_end: Callable[[str], None]
) -> None:
    let_lease_end(held.job_id)
    _do(sessions, lifecycle.finish, held, "digest", FILES)
    assert _do(sessions, lifecycle.expire_leases) == 0
    assert _job(sessions, held.job_id).status == "succeeded"


def test_finishing_twice_is_harmless_and_another_result_is_refused(sessions: Sessions, held: Claim) -> None:
    for _ in range(2):
        _do(sessions, lifecycle.finish, held, "digest", FILES)
    with pytest.raises(Fenced):
        _do(sessions, lifecycle.finish, held, "another", FILES)
    assert _types(sessions, held.job_id).count("job.succeeded") == 1


@pytest.mark.parametrize("how", ["fail", "expire"])
def test_three_losses_end_the_job(
    sessions: Sessions, job_id: str, let_lease_end: Callable[[str], None], how: str
) -> None:
    for _ in range(3):
        claim = _do(sessions, lifecycle.claim, job_id, "w")
        if how == "fail":
            _do(sessions, lifecycle.fail, claim, LOST)
        else:
            let_lease_end(job_id)
            _do(sessions, lifecycle.expire_leases)
    job = _job(sessions, job_id)
    assert (job.status, job.attempt) == ("failed", 3)
    assert job.failure["kind"] == "infrastructure"
    assert _states(sessions, job_id) == ["failed" if how == "fail" else "lost"] * 3
    assert _do(sessions, lifecycle.claim, job_id, "w") is None


def test_losses_wait_longer_each_time_and_releases_do_not(sessions: Sessions, job_id: str) -> None:
    for end in ((lifecycle.fail, LOST), (lifecycle.release,), (lifecycle.fail, LOST)):
        claim = _do(sessions, lifecycle.claim, job_id, "w")
        _do(sessions, end[0], claim, *end[1:])
    delay = func.round(func.extract("epoch", OutboxMessage.available_at - OutboxMessage.created_at))
    with sessions() as session:
        assert [int(d) for d in session.scalars(select(delay).order_by(OutboxMessage.id))] == [0, 5, 0, 10]
    job = _job(sessions, job_id)
    assert (job.status, job.losses, job.attempt) == ("queued", 2, 3)
    assert _states(sessions, job_id) == ["failed", "released", "failed"]


def test_a_final_failure_names_its_stage(sessions: Sessions, held: Claim) -> None:
    _do(
        sessions,
        lifecycle.record,
        held,
        [RunPlanned(stages=("1-ptq", "2-export")), StageStarted(stage="1-ptq", key="k")],
    )
    _do(sessions, lifecycle.fail, held, WRONG)
    job = _job(sessions, held.job_id)
    assert (job.status, job.failure["code"]) == ("failed", "recipe_invalid")
    with sessions() as session:
        assert [s.status for s in stages.of(session, [job.id])] == ["failed", "cancelled"]


def test_cancelling_travels_on_the_renewal(sessions: Sessions, held: Claim) -> None:
    for _ in range(2):
        assert _do(sessions, lifecycle.request_cancel, "acme", held.job_id).status == "cancelling"
    assert _do(sessions, lifecycle.renew, held).cancel_requested
    _do(sessions, lifecycle.cancelled, held)
    assert _do(sessions, lifecycle.request_cancel, "acme", held.job_id).status == "cancelled"
    assert _types(sessions, held.job_id) == ["job.queued", "job.running", "job.cancelling", "job.cancelled"]


def test_a_run_that_ends_while_it_is_cancelled_keeps_its_result(sessions: Sessions, held: Claim) -> None:
    _do(sessions, lifecycle.request_cancel, "acme", held.job_id)
    _do(sessions, lifecycle.finish, held, "digest", FILES)
    assert _job(sessions, held.job_id).status == "succeeded"
    with pytest.raises(Conflict, match="succeeded already"):
        _do(sessions, lifecycle.request_cancel, "acme", held.job_id)


@pytest.mark.parametrize("how", ["expire", "release", "fail"])
def test_a_cancelled_job_is_never_queued_again(
    sessions: Sessions, held: Claim, let_lease_end: Callable[[str], None], how: str
) -> None:
    _do(sessions, lifecycle.request_cancel, "acme", held.job_id)
    if how == "expire":
        let_lease_end(held.job_id)
        _do(sessions, lifecycle.expire_leases)
    else:
        _do(sessions, *{"release": (lifecycle.release, held), "fail": (lifecycle.fail, held, LOST)}[how])
    assert _job(sessions, held.job_id).status == "cancelled"


def test_nobody_cancels_what_no_owner_asked_for(sessions: Sessions, held: Claim) -> None:
    with pytest.raises(Fenced, match="nobody asked"):
        _do(sessions, lifecycle.cancelled, held)
    with pytest.raises(NotFound):
        _do(sessions, lifecycle.request_cancel, "other", held.job_id)


def test_two_reconcilers_lose_a_job_once(sessions: Sessions, held: Claim, let_lease_end: Callable[[str], None]) -> None:
    let_lease_end(held.job_id)
    assert sum(_at_once(4, lambda _: _do(sessions, lifecycle.expire_leases))) == 1
    assert _types(sessions, held.job_id).count("job.queued") == 2


def test_a_queued_job_that_nobody_hears_of_is_announced_again(sessions: Sessions, job_id: str) -> None:
    def late() -> None:
        with sessions.begin() as session:
            session.execute(update(Job).values(wake_at=func.now() - text("interval '1 second'")))

    late()
    assert _do(sessions, lifecycle.republish_stuck) == 0, "its first announcement still waits in the outbox"
    with sessions.begin() as session:
        outbox.mark_published(session, [message.id for message in outbox.take(session)])
    assert _do(sessions, lifecycle.republish_stuck) == 1
    assert _do(sessions, lifecycle.republish_stuck) == 0, "announced just now"
    with sessions.begin() as session:
        (message,) = outbox.take(session)
    assert (message.topic, message.payload) == ("run_job", {"job_id": job_id})


def test_a_stage_that_this_job_finished_before_stays_its_own(sessions: Sessions, held: Claim) -> None:
    done = StageFinished(stage="1-ptq", key="k", cached=False, seconds=9, peak_memory_bytes=7)
    _do(sessions, lifecycle.record, held, [RunPlanned(stages=("1-ptq", "2-export")), done])
    _do(sessions, lifecycle.release, held)
    again = _do(sessions, lifecycle.claim, held.job_id, "w2")
    found = done.model_copy(update={"cached": True, "seconds": 0.0})
    _do(sessions, lifecycle.record, again, [RunPlanned(stages=("1-ptq", "2-export")), found])
    with sessions() as session:
        assert [(s.status, s.seconds) for s in stages.of(session, [held.job_id])] == [
            ("succeeded", 9),
            ("pending", None),
        ]


def test_two_relays_share_the_outbox_and_wait_for_what_is_not_due(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for number in range(6):
            outbox.add(session, "t", {"n": number})
        outbox.add(session, "t", {"n": "later"}, delay_seconds=60)
    with sessions.begin() as one, sessions.begin() as two:
        first, second = outbox.take(one, 4), outbox.take(two, 4)
        assert [m.payload["n"] for m in first] + [m.payload["n"] for m in second] == [0, 1, 2, 3, 4, 5]
        outbox.mark_published(one, [m.id for m in first])
    with sessions.begin() as session:
        assert [m.payload["n"] for m in outbox.take(session)] == [4, 5]


def test_published_messages_are_forgotten_after_a_day(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for _ in range(3):
            outbox.add(session, "t", {})
        old, fresh, _waiting = [message.id for message in outbox.take(session)]
        outbox.mark_published(session, [old, fresh])
        past = func.now() - text("interval '25 hours'")
        session.execute(update(OutboxMessage).where(OutboxMessage.id == old).values(published_at=past))
        lifecycle.republish_stuck(session)
        assert old not in session.scalars(select(OutboxMessage.id)).all()
        assert len(session.scalars(select(OutboxMessage.id)).all()) == 2


@pytest.mark.parametrize("said", ["a\0b", "\0\0", "\\\0", "\\u0000", "C:\\\\u0000", "\U0001f600"])
def test_whatever_the_engine_says_is_stored(sessions: Sessions, held: Claim, said: str) -> None:
    failure = WRONG.model_copy(update={"message": said})
    _do(sessions, lifecycle.record, held, [Notice(stage="1-ptq", message=said)])
    _do(sessions, lifecycle.fail, held, failure)
    assert _job(sessions, held.job_id).failure["message"] == said.replace("\0", "\ufffd")
