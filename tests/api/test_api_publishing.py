"""Publishing is a life of its own: claimed, retried and lost without touching the job."""

from collections.abc import Callable

import pytest
from sqlalchemy import func, text, update

from api import lifecycle
from api.errors import Fenced
from api.lifecycle import PublishClaim
from api.store import events, jobs, outbox
from api.store.models import Job
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
