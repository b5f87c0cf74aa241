"""Pause, resume, retry, delete, publish: over HTTP, with their events, and once however often they are asked for."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from api import lifecycle
from api.lifecycle import ArtifactFile, Claim
from api.settings import Settings
from api.store import credentials, events
from api.store.models import Attempt, Job, Removal, Stage
from api.store.session import Sessions
from optcore.errors import Failure
from optcore.events import StageFinished, StageStarted

pytestmark = pytest.mark.integration
WRONG = Failure(kind="user_error", code="recipe_invalid", message="no", stage="1-ptq")


def _ask(client: TestClient, job_id: str, verb: str, status: int = 200, **more: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/jobs/{job_id}/{verb}", **more)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def _types(sessions: Sessions, job_id: str) -> list[str]:
    with sessions() as session:
        return [line.type for line in events.after(session, job_id, 0, 100)]


def test_a_waiting_job_is_paused_at_once_and_resumed(client: TestClient, sessions: Sessions, job_id: str) -> None:
    assert _ask(client, job_id, "pause")["status"] == "paused"
    assert _ask(client, job_id, "pause")["status"] == "paused"
    with sessions.begin() as session:
        assert lifecycle.claim(session, job_id, "w") is None
    assert _ask(client, job_id, "resume")["status"] == "queued"
    assert _ask(client, job_id, "resume")["status"] == "queued"
    assert _types(sessions, job_id) == ["job.queued", "job.paused", "job.queued"]


def test_a_running_job_pauses_when_its_worker_hears_of_it(client: TestClient, sessions: Sessions, held: Claim) -> None:
    assert _ask(client, held.job_id, "pause")["status"] == "pausing"
    assert _ask(client, held.job_id, "resume", 409)["code"] == "conflict"
    with sessions.begin() as session:
        assert lifecycle.renew(session, held).pause_requested
        lifecycle.paused(session, held)
    job = client.get(f"/v1/jobs/{held.job_id}", params={"expand": "attempts"}).json()
    assert (job["status"], [a["state"] for a in job["attempts"]]) == ("paused", ["paused"])
    assert _ask(client, held.job_id, "resume")["waiting"]["reason"] == "no_worker"


def test_a_pausing_job_whose_worker_is_lost_is_paused(
    client: TestClient, sessions: Sessions, held: Claim, let_lease_end: Callable[[str], None]
) -> None:
    _ask(client, held.job_id, "pause")
    let_lease_end(held.job_id)
    with sessions.begin() as session:
        assert lifecycle.expire_leases(session) == 1
    assert client.get(f"/v1/jobs/{held.job_id}").json()["status"] == "paused"


def test_a_retry_is_a_new_run_that_keeps_what_is_finished(client: TestClient, sessions: Sessions, held: Claim) -> None:
    with sessions.begin() as session:
        for name in ("0-load", "1-ptq"):
            lifecycle.record(session, held, [StageStarted(stage=name, key=name)])
        done = StageFinished(stage="0-load", key="0-load", cached=False, seconds=1.0, peak_memory_bytes=1)
        lifecycle.record(session, held, [done])
        lifecycle.fail(session, held, WRONG)
    assert _ask(client, held.job_id, "resume", 409)["code"] == "conflict"
    job = _ask(client, held.job_id, "retry", headers={"Idempotency-Key": "again"})
    assert (job["status"], job["run_number"], job["failure"], job["finished_at"]) == ("queued", 2, None, None)
    assert _ask(client, held.job_id, "retry", headers={"Idempotency-Key": "again"}) == job, "done once"
    assert _ask(client, held.job_id, "retry", 409)["code"] == "conflict"
    with sessions.begin() as session:
        stages = session.execute(select(Stage.name, Stage.status).order_by(Stage.name)).all()
        assert [tuple(row) for row in stages] == [("0-load", "succeeded"), ("1-ptq", "pending")]
        claim = lifecycle.claim(session, held.job_id, "w2")
        assert claim is not None
        assert claim.epoch == held.epoch + 1, "what the first run's worker still writes is refused"
        runs = session.execute(select(Attempt.epoch, Attempt.run_number).order_by(Attempt.epoch)).all()
        assert [tuple(row) for row in runs] == [(1, 1), (2, 2)]


def test_only_a_job_that_is_over_can_be_deleted_and_its_files_go(
    client: TestClient, sessions: Sessions, held: Claim
) -> None:
    assert client.delete(f"/v1/jobs/{held.job_id}").status_code == 409
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", [ArtifactFile("a", 1, "0" * 64)])
    assert client.delete(f"/v1/jobs/{held.job_id}").status_code == 204
    assert client.get(f"/v1/jobs/{held.job_id}").status_code == 404
    assert client.delete(f"/v1/jobs/{held.job_id}").status_code == 404
    with sessions() as session:
        assert session.scalars(select(Removal.prefix)).all() == [held.job_id]
        for table in ("jobs", "events", "attempts", "artifacts", "stages"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table


def test_a_job_can_be_published_afterwards_and_again_after_a_failure(
    client: TestClient, sessions: Sessions, settings: Settings, held: Claim
) -> None:
    assert _ask(client, held.job_id, "publish", 409)["code"] == "conflict"
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", [])
    assert "where to publish" in _ask(client, held.job_id, "publish", 409)["detail"]
    place = {"repo_id": "me/x"}
    assert _ask(client, held.job_id, "publish", 422, json=place)["code"] == "credential_unknown"
    assert _ask(client, held.job_id, "publish", 422, json={"repo": "me/x"})["code"] == "invalid"
    with sessions.begin() as session:
        credentials.put(session, settings.vault, "acme", "default", "hf_x")
    assert _ask(client, held.job_id, "publish", json=place)["publish"]["status"] == "pending"
    with sessions.begin() as session:
        claim = lifecycle.claim_publish(session, held.job_id, "w")
        assert claim is not None
        assert claim.publish_to["repo_id"] == "me/x"
        refused = Failure(kind="user_error", code="publish_refused", message="no")
        lifecycle.publish_failed(session, claim, refused)
    assert _ask(client, held.job_id, "publish")["publish"]["status"] == "pending"
    with sessions.begin() as session:
        again = lifecycle.claim_publish(session, held.job_id, "w")
        assert again is not None
        assert (again.attempt, again.epoch) == (1, claim.epoch + 1), "new tries, and the old push stays fenced"


def test_a_run_that_takes_too_long_is_ended_by_its_worker_or_by_the_reconciler(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    job_id = client.post("/v1/jobs", json=document | {"limits": {"max_run_seconds": 100}}).json()["id"]
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        assert not lifecycle.renew(session, claim).out_of_time
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '101 seconds'")))
    with sessions.begin() as session:
        assert lifecycle.renew(session, claim).out_of_time
        assert lifecycle.enforce_deadlines(session) == 0, "its worker has time to do it"
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '300 seconds'")))
    with sessions.begin() as session:
        assert lifecycle.enforce_deadlines(session) == 1
    failure = client.get(f"/v1/jobs/{job_id}").json()["failure"]
    assert (failure["kind"], failure["code"], failure["retryable"]) == ("timeout", "run_timeout", False)


def test_time_in_the_queue_is_not_time_in_a_workers_hands(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    limits = {"max_run_seconds": 100, "max_queue_seconds": 50}
    job_id = client.post("/v1/jobs", json=document | {"limits": limits}).json()["id"]
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '60 seconds'")))
        lifecycle.release(session, claim)
    with sessions.begin() as session:
        again = lifecycle.claim(session, job_id, "w")
        assert again is not None
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '39 seconds'")))
        assert not lifecycle.renew(session, again).out_of_time, "60 + 39"
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '41 seconds'")))
        assert lifecycle.renew(session, again).out_of_time
        lifecycle.release(session, again)
        session.execute(update(Job).values(queued_at=func.now() - text("interval '51 seconds'")))
    with sessions.begin() as session:
        assert lifecycle.enforce_deadlines(session) == 1
    assert client.get(f"/v1/jobs/{job_id}").json()["failure"]["code"] == "queue_timeout"


def test_a_job_that_is_being_cancelled_when_its_time_is_up_is_cancelled(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    job_id = client.post("/v1/jobs", json=document | {"limits": {"max_run_seconds": 100}}).json()["id"]
    with sessions.begin() as session:
        assert lifecycle.claim(session, job_id, "w") is not None
    _ask(client, job_id, "cancel")
    with sessions.begin() as session:
        session.execute(update(Job).values(claimed_at=func.now() - text("interval '1000 seconds'")))
        assert lifecycle.enforce_deadlines(session) == 1
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["failure"]) == ("cancelled", None)


REACHED: dict[str, tuple[str, ...]] = {
    "queued": (),
    "running": ("claim",),
    "pausing": ("claim", "pause"),
    "paused": ("pause",),
    "cancelling": ("claim", "cancel"),
    "succeeded": ("claim", "finish"),
    "failed": ("claim", "fail"),
    "cancelled": ("cancel",),
}
ALLOWED: dict[str, dict[str, str]] = {
    "cancel": {
        "queued": "cancelled",
        "running": "cancelling",
        "pausing": "cancelling",
        "paused": "cancelled",
        "cancelling": "cancelling",
        "cancelled": "cancelled",
    },
    "pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    "resume": {"queued": "queued", "running": "running", "paused": "queued"},
    "retry": {"failed": "queued", "cancelled": "queued"},
    "delete": {"succeeded": "", "failed": "", "cancelled": ""},
}


@pytest.mark.parametrize("status", REACHED)
def test_every_verb_in_every_state(
    client: TestClient, sessions: Sessions, document: dict[str, Any], status: str
) -> None:
    for verb, allowed in ALLOWED.items():
        job_id = client.post("/v1/jobs", json=document).json()["id"]
        _bring_to(client, sessions, job_id, status)
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == status
        answer = client.delete(f"/v1/jobs/{job_id}") if verb == "delete" else client.post(f"/v1/jobs/{job_id}/{verb}")
        if status not in allowed:
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), verb
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == status, verb
        elif verb == "delete":
            assert (answer.status_code, client.get(f"/v1/jobs/{job_id}").status_code) == (204, 404)
        else:
            assert (answer.status_code, answer.json()["status"]) == (200, allowed[status]), verb


def _bring_to(client: TestClient, sessions: Sessions, job_id: str, status: str) -> None:
    claim: Claim | None = None
    for step in REACHED[status]:
        if step in {"pause", "cancel"}:
            _ask(client, job_id, step)
            continue
        with sessions.begin() as session:
            if step == "claim":
                claim = lifecycle.claim(session, job_id, "w")
                assert claim is not None
            elif step == "finish":
                lifecycle.finish(session, claim, "d" * 64, [])
            else:
                lifecycle.fail(session, claim, WRONG)
