"""Publishing is a life of its own: claimed, retried and lost without touching the job."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from api import lifecycle
from api.errors import Fenced
from api.lifecycle import PublishClaim
from api.store import events, jobs, outbox
from api.store.models import Job, OutboxMessage
from api.store.session import Sessions
from optcore.errors import Failure
from optcore.recipe import Recipe, recipe_from

pytestmark = pytest.mark.integration
AWAY = Failure(kind="upstream_hub", code="hub_unavailable", message="503", retryable=True)
DENIED = Failure(kind="user_error", code="hub_denied", message="401")


@pytest.fixture
def done(sessions: Sessions, recipe: Recipe) -> str:
    """A succeeded job that wants to be published."""
    wanted = recipe_from(recipe.model_dump(mode="json") | {"publish": {"repo_id": "me/x"}})
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, "acme", wanted).id
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        lifecycle.finish(session, claim, "digest", [])
        outbox.mark_published(session, [message.id for message in outbox.take(session) if message.topic == "run_job"])
    return job_id


@pytest.fixture
def begin(sessions: Sessions, done: str) -> Callable[[], PublishClaim | None]:
    def claim() -> PublishClaim | None:
        with sessions.begin() as session:
            return lifecycle.claim_publish(session, done, "w")

    return claim


def _status(sessions: Sessions, job_id: str) -> tuple[str, str]:
    with sessions() as session:
        job = jobs.find(session, job_id)
        assert job is not None
        return job.status, job.publish_status


def test_a_push(sessions: Sessions, done: str, begin: Callable[[], PublishClaim]) -> None:
    with sessions.begin() as session:
        assert [(m.topic, m.payload) for m in outbox.take(session)] == [("publish", {"job_id": done})]
    claim = begin()
    assert (claim.artifact_epoch, claim.artifact_digest, claim.publish_to["repo_id"]) == (1, "digest", "me/x")
    assert begin() is None, "another worker has it"
    with sessions.begin() as session:
        lifecycle.renew_publish(session, claim)
        lifecycle.publish_succeeded(session, claim, "https://hub/me/x", "c0ffee")
    with sessions() as session:
        job = jobs.find(session, done)
        lines = events.after(session, done, 0, 99)
    assert (job.status, job.publish_status, job.publish_commit) == ("succeeded", "published", "c0ffee")
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    assert begin() is None


def test_the_hubs_faults_are_retried_and_the_users_are_not(
    sessions: Sessions, done: str, begin: Callable[[], PublishClaim]
) -> None:
    for attempt in range(1, 6):
        claim = begin()
        assert claim.attempt == attempt
        with sessions.begin() as session:
            lifecycle.publish_failed(session, claim, AWAY)
        assert _status(sessions, done) == ("succeeded", "pending" if attempt < 5 else "failed")
    assert begin() is None


def test_a_refused_push_ends_at_once(sessions: Sessions, done: str, begin: Callable[[], PublishClaim]) -> None:
    claim = begin()
    with sessions.begin() as session:
        lifecycle.publish_failed(session, claim, DENIED)
    assert _status(sessions, done) == ("succeeded", "failed")
    with pytest.raises(Fenced), sessions.begin() as session:
        lifecycle.publish_succeeded(session, claim, "u", "c")


def test_a_lost_push_is_announced_again_and_the_old_one_fenced(
    sessions: Sessions, done: str, begin: Callable[[], PublishClaim]
) -> None:
    old = begin()
    with sessions.begin() as session:
        outbox.mark_published(session, [message.id for message in outbox.take(session)])
        session.execute(update(Job).values(publish_wake_at=func.now() - text("interval '1 second'")))
    with sessions.begin() as session:
        assert lifecycle.republish_stuck(session) == 1
    assert _status(sessions, done) == ("succeeded", "pending")
    new = begin()
    assert new.epoch == old.epoch + 1
    for call in (lifecycle.renew_publish, lambda session, claim: lifecycle.publish_succeeded(session, claim, "u", "c")):
        with pytest.raises(Fenced), sessions.begin() as session:
            call(session, old)


def _another(sessions: Sessions, recipe: Recipe, repo_id: str, project: str = "acme") -> str:
    wanted = recipe_from(recipe.model_dump(mode="json") | {"publish": {"repo_id": repo_id}})
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, project, wanted).id
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        lifecycle.finish(session, claim, "digest", [])
        _sent(session)
    return job_id


def _sent(session: Session) -> list[str]:
    """The jobs whose push is announced, taken as announced."""
    messages = outbox.take(session)
    outbox.mark_published(session, [message.id for message in messages])
    return [message.payload["job_id"] for message in messages if message.topic == "publish"]


def _claim(sessions: Sessions, job_id: str) -> PublishClaim | None:
    with sessions.begin() as session:
        return lifecycle.claim_publish(session, job_id, f"w-{job_id}")


def test_one_push_at_a_time_to_a_repository_and_the_next_is_called(
    sessions: Sessions, recipe: Recipe, done: str, begin: Callable[[], PublishClaim]
) -> None:
    second, third = _another(sessions, recipe, "ME/x"), _another(sessions, recipe, "me/x")
    elsewhere = _another(sessions, recipe, "me/y")
    first = begin()
    assert _claim(sessions, elsewhere) is not None
    assert _claim(sessions, second) is None
    with sessions.begin() as session:
        _sent(session)
        lifecycle.publish_failed(session, first, AWAY)
    with sessions.begin() as session:
        assert _sent(session) == [second]
    claim = _claim(sessions, second)
    assert claim is not None
    assert claim.attempt == 1, "waiting is no try"
    assert _claim(sessions, third) is None
    with sessions.begin() as session:
        lifecycle.publish_succeeded(session, claim, "u", "c")
    with sessions.begin() as session:
        assert _sent(session) == [third], "the first one waits for its time"


def test_two_workers_never_begin_to_push_to_one_repository(sessions: Sessions, recipe: Recipe, done: str) -> None:
    others = [_another(sessions, recipe, "me/x") for _ in range(5)]
    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(lambda job_id: _claim(sessions, job_id), [done, *others]))
    assert len([claim for claim in claims if claim is not None]) == 1


def test_a_stranger_and_a_lost_worker_hold_nobody_up(
    sessions: Sessions, recipe: Recipe, done: str, begin: Callable[[], PublishClaim]
) -> None:
    with sessions.begin() as session:
        session.execute(text("INSERT INTO projects (id, name) VALUES ('rival', 'rival') ON CONFLICT DO NOTHING"))
    rival = _another(sessions, recipe, "me/x", "rival")
    assert _claim(sessions, rival) is not None
    assert begin() is not None
    second = _another(sessions, recipe, "me/x")
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == done).values(publish_wake_at=func.now() - text("interval '1 s'")))
    assert _claim(sessions, second) is not None


@pytest.mark.parametrize(("asked", "delay_seconds"), [(0, 30), (7, 30), (600, 600), (10**6, 3600)])
def test_the_hubs_wish_to_be_left_alone_wins_up_to_an_hour(
    sessions: Sessions, done: str, begin: Callable[[], PublishClaim], asked: float, delay_seconds: int
) -> None:
    claim = begin()
    with sessions.begin() as session:
        lifecycle.publish_failed(session, claim, AWAY, retry_after_seconds=asked)
        waits = func.extract("epoch", OutboxMessage.available_at - func.now())
        assert session.scalars(select(waits).where(OutboxMessage.published_at.is_(None)).order_by(waits)).all()[-1] == (
            delay_seconds
        )


def test_pull_requests_are_remembered_until_it_is_asked_for_again(
    sessions: Sessions, done: str, begin: Callable[[], PublishClaim]
) -> None:
    claim = begin()
    with sessions.begin() as session:
        lifecycle.note_pull_requests(session, claim, {"me/x@main": 7})
        lifecycle.publish_failed(session, claim, AWAY)
    claim = begin()
    assert claim.pull_requests == {"me/x@main": 7}
    with sessions.begin() as session:
        lifecycle.publish_failed(session, claim, DENIED)
        with pytest.raises(Fenced):
            lifecycle.note_pull_requests(session, claim, {})
    with sessions.begin() as session:
        lifecycle.request_publish(session, "acme", done, None)
    assert begin().pull_requests == {}


def test_a_worker_whose_push_failed_says_no_more(
    sessions: Sessions, done: str, begin: Callable[[], PublishClaim]
) -> None:
    """Not even when the owner has asked for another push meanwhile, which is somebody else's."""
    claim = begin()
    with sessions.begin() as session:
        lifecycle.publish_failed(session, claim, DENIED)
    for where in (None, {"repo_id": "me/y", "credential": "default"}):
        if where:
            with sessions.begin() as session:
                lifecycle.request_publish(session, "acme", done, where)
        with sessions() as session, pytest.raises(Fenced):
            lifecycle.publish_succeeded(session, claim, "https://hub/me/x", "c0ffee")
        with sessions() as session, pytest.raises(Fenced):
            lifecycle.publish_failed(session, claim, DENIED)
    assert _status(sessions, done) == ("succeeded", "pending")
