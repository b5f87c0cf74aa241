"""What webhook receivers are told: every change that they can ask for, in its transaction, and at no cost to others."""

from typing import Any

import pytest
from sqlalchemy import event, select

from api import lifecycle
from api.lifecycle import Claim
from api.lifecycle.announcements import announce
from api.settings import Settings
from api.store import jobs, webhooks
from api.store.models import WebhookMessage
from api.store.session import Sessions
from lathe.webhook_models import WebhookEventType, WebhookPayload
from optcore.errors import Failure
from optcore.events import RunPlanned, StageFinished
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
EVERY: tuple[str, ...] = WebhookEventType.__args__  # type: ignore[attr-defined]
AT_A_GATE = Failure(kind="quality_gate", code="gate_failed", message="too far off", stage="1-ptq")
DIED = Failure(kind="infrastructure", code="stage_crashed", message="died", stage="1-ptq", retryable=True)


@pytest.fixture
def receiver(sessions: Sessions, settings: Settings) -> str:
    """An endpoint that wants everything."""
    with sessions.begin() as session:
        return webhooks.create_endpoint(session, settings.vault, "acme", "https://hooks.example", EVERY)[0].id


def _told(sessions: Sessions) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(WebhookMessage.type).order_by(WebhookMessage.id)))


def _payloads(sessions: Sessions) -> list[WebhookPayload]:
    with sessions() as session:
        rows = session.scalars(select(WebhookMessage).order_by(WebhookMessage.id)).all()
    return [WebhookPayload.model_validate(row.payload) for row in rows]


def _claim(sessions: Sessions, job_id: str) -> Claim:
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w1")
    assert claim is not None
    return claim


def test_every_change_of_a_job_is_told(sessions: Sessions, receiver: str, recipe: Recipe) -> None:
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, "acme", recipe).id
        lifecycle.request_pause(session, "acme", job_id)
        lifecycle.resume(session, "acme", job_id)
        lifecycle.request_cancel(session, "acme", job_id)
        lifecycle.retry(session, "acme", job_id)
    lost = _claim(sessions, job_id)
    with sessions.begin() as session:
        lifecycle.fail(session, lost, DIED)
    failed = _claim(sessions, job_id)
    with sessions.begin() as session:
        lifecycle.fail(session, failed, AT_A_GATE)
        lifecycle.retry(session, "acme", job_id)
    done = _claim(sessions, job_id)
    with sessions.begin() as session:
        lifecycle.finish(session, done, "d" * 64, [])
        lifecycle.request_publish(session, "acme", job_id, {"repo_id": "me/model"})
    for outcome in ("failed", "succeeded"):
        with sessions.begin() as session:
            push = lifecycle.claim_publish(session, job_id, "w2")
            assert push is not None
            if outcome == "failed":
                lifecycle.publish_failed(session, push, AT_A_GATE)
                lifecycle.request_publish(session, "acme", job_id, None)
            else:
                lifecycle.publish_succeeded(session, push, "https://hub.example/me/model", "c" * 40)
    assert _told(sessions) == [
        *("job.queued", "job.paused", "job.queued", "job.cancelled", "job.queued", "job.running", "job.queued"),
        *("job.running", "gate.failed", "stage.failed", "job.failed", "job.queued", "job.running", "job.succeeded"),
        *("publish.failed", "publish.succeeded"),
    ]
    payloads = _payloads(sessions)
    sequences = [payload.data["sequence"] for payload in payloads]
    assert sequences == sorted(sequences)
    assert payloads[-1].data["publish"]["url"] == "https://hub.example/me/model"
    assert [payload.data["failure"] and payload.data["failure"]["kind"] for payload in payloads[8:12]] == [
        *["quality_gate"] * 3,
        None,
    ]


def test_a_finished_stage_is_told_once_however_often_it_is_reported(
    sessions: Sessions, receiver: str, job_id: str
) -> None:
    """After a lost attempt the next one finds it done, and says so again."""
    for cached in (False, True):
        claim = _claim(sessions, job_id)
        said = StageFinished(stage="0-fetch", key="k", cached=cached, seconds=1, peak_memory_bytes=1)
        with sessions.begin() as session:
            lifecycle.record(session, claim, [RunPlanned(stages=("0-fetch", "1-ptq")), said])
            lifecycle.release(session, claim)
    told = [payload for payload in _payloads(sessions) if payload.type == "stage.succeeded"]
    assert [payload.data["stage"] for payload in told] == ["0-fetch"]


def test_what_is_rolled_back_was_never_told(sessions: Sessions, receiver: str, recipe: Recipe) -> None:
    with sessions() as session:
        lifecycle.submit(session, "acme", recipe)
        session.rollback()
    assert _told(sessions) == []


def test_a_project_without_receivers_pays_one_statement(sessions: Sessions, job_id: str) -> None:
    said: list[str] = []
    with sessions.begin() as session:
        job = jobs.find(session, job_id)
        assert job is not None
        engine: Any = session.get_bind()
        event.listen(engine, "before_cursor_execute", lambda *call: said.append(call[2]))
        announce(session, job, "job.running")
        assert len(said) == 1, said
