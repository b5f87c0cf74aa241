"""Jobs over HTTP: submit, read, page, cancel; other tenants see nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from api import lifecycle
from api.lifecycle import Claim
from api.settings import Settings
from api.store import credentials, jobs, projects, webhooks
from api.store.models import AuditEntry, Event, IdempotencyKey, Job, OutboxMessage, WebhookMessage
from api.store.session import Sessions
from lathe import models as wire
from optcore.events import RecipeResolved
from optcore.recipe import Recipe, parse_recipe, recipe_from

pytestmark = pytest.mark.integration


def _count(sessions: Sessions, table: Any) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_submit_then_get(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    answer = client.post("/v1/jobs", json=document)
    assert answer.status_code == 201
    job = wire.Job.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert (job.status, job.is_terminal, job.name, job.metadata) == ("queued", False, "fast", {"team": "nlp"})
    assert job.recipe == recipe_from(document)
    looked_at = client.get(answer.headers["location"]).json()
    assert looked_at | {"waiting": None} == answer.json(), "why it waits is found out when somebody looks"
    with sessions() as session:
        assert session.scalars(select(OutboxMessage.payload)).all() == [{"job_id": job.id}]


def test_times_are_utc_with_a_z(client: TestClient, job_id: str) -> None:
    assert client.get(f"/v1/jobs/{job_id}").json()["created_at"].endswith("Z")


def test_a_request_sent_twice_makes_one_job(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    first, second = (client.post("/v1/jobs", json=document, headers={"Idempotency-Key": "k1"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first.headers["location"] == second.headers["location"]
    assert ("idempotent-replayed" in first.headers, second.headers["idempotent-replayed"]) == (False, "true")
    assert (_count(sessions, Job), _count(sessions, OutboxMessage)) == (1, 1)


def test_a_request_sent_many_times_at_once_makes_one_job(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    def post(_: int) -> Any:
        return client.post("/v1/jobs", json=document, headers={"Idempotency-Key": "race"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert _count(sessions, Job) == 1


def test_an_idempotency_key_belongs_to_one_body_and_one_owner(
    client: TestClient, stranger: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert client.post("/v1/jobs", json=document, headers=headers).status_code == 201
    other = client.post("/v1/jobs", json={**document, "seed": 7}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert "idempotent-replayed" not in stranger.post("/v1/jobs", json=document, headers=headers).headers
    assert _count(sessions, Job) == 2


def test_a_refused_request_uses_no_key(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "k1"}
    refused = {**document, "publish": {"repo_id": "me/x", "credential": "absent"}}
    assert client.post("/v1/jobs", json=refused, headers=headers).status_code == 422
    assert _count(sessions, IdempotencyKey) == 0
    assert client.post("/v1/jobs", json=document, headers=headers).status_code == 201


def test_what_was_accepted_is_answered_again_though_it_would_be_refused_now(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = client.post("/v1/jobs", json=document, headers=headers)
    with sessions.begin() as session:
        projects.limit(session, "acme", max_unfinished=1)
        claim = lifecycle.claim(session, first.json()["id"], "w")
        assert claim is not None
    assert client.post("/v1/jobs", json=document).status_code == 403
    again = client.post("/v1/jobs", json=document, headers=headers)
    assert (again.status_code, again.content) == (201, first.content), "as it was queued, though it runs by now"


def test_the_last_place_is_given_once(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    with sessions.begin() as session:
        projects.limit(session, "acme", max_unfinished=3)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: client.post("/v1/jobs", json=document).status_code, range(8)))
    assert sorted(statuses) == [201] * 3 + [403] * 5
    assert (_count(sessions, Job), _count(sessions, OutboxMessage)) == (3, 3)


def test_a_repeat_makes_no_second_job_of_one_that_was_deleted(
    client: TestClient, sessions: Sessions, document: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "k1"}
    job_id = client.post("/v1/jobs", json=document, headers=headers).json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    again = client.post("/v1/jobs", json=document, headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert _count(sessions, Job) == 0


def test_a_key_is_free_again_after_a_day(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = client.post("/v1/jobs", json=document, headers=headers).json()["id"]
    with sessions.begin() as session:
        session.execute(update(IdempotencyKey).values(created_at=func.now() - text("interval '25 hours'")))
    second = client.post("/v1/jobs", json=document, headers=headers).json()["id"]
    assert first != second
    assert client.post("/v1/jobs", json=document, headers=headers).json()["id"] == second


@pytest.mark.parametrize("receiver", [False, True], ids=["at once", "in a transaction"])
def test_a_job_begins_with_all_its_rows(
    client: TestClient, sessions: Sessions, settings: Settings, document: dict[str, Any], receiver: bool
) -> None:
    with sessions.begin() as session:
        credentials.put(session, settings.vault, "acme", "hub", "hf_secret")
        if receiver:
            webhooks.create_endpoint(session, settings.vault, "acme", "https://a.example/", ["job.queued"])
    wishes = {"priority": 3, "limits": {"max_run_seconds": 60, "max_queue_seconds": 7}}
    hardware = {"hardware": {"gpu_kind": "H200", "gpu_memory_gib": 80}}
    wishes |= {"publish": {"repo_id": "me/x", "credential": "hub"}}
    answer = client.post("/v1/jobs", json={**document, **wishes, **hardware}, headers={"X-Request-Id": "request-0001"})
    with sessions() as session:
        job = session.scalars(select(Job)).one()
        [first] = session.scalars(select(Event)).all()
        [told] = session.scalars(select(OutboxMessage).where(OutboxMessage.topic == "run_job")).all()
        [entry] = session.scalars(select(AuditEntry)).all()
        assert _count(sessions, WebhookMessage) == receiver
    assert (job.id, job.project_id, job.status, job.last_seq) == (answer.json()["id"], "acme", "queued", 1)
    assert (job.priority, job.max_run_seconds, job.max_queue_seconds) == (3, 60, 7)
    assert (job.device, job.gpu_kind, job.gpu_memory_bytes) == ("cuda", "H200", 80 << 30)
    assert job.publish_to == job.recipe["publish"]
    assert job.publish_to["repo_id"] == "me/x"
    assert job.digest == recipe_from(job.recipe).digest
    assert (job.wake_at - job.created_at).total_seconds() == jobs.REANNOUNCE_seconds
    assert (first.job_id, first.seq, first.type, first.data) == (job.id, 1, "job.queued", {"reason": "submitted"})
    assert told.payload == {"job_id": job.id}
    assert (entry.action, entry.target, entry.request_id) == ("job.create", job.id, "request-0001")


def test_pages_neither_repeat_nor_skip_while_jobs_arrive(
    client: TestClient, stranger: TestClient, sessions: Sessions, recipe: Recipe, document: dict[str, Any]
) -> None:
    def submit() -> str:
        with sessions.begin() as session:
            return lifecycle.submit(session, "acme", recipe).id

    stranger.post("/v1/jobs", json=document)
    expected = [submit() for _ in range(7)][::-1]
    seen: list[str] = []
    after = None
    while True:
        page = client.get("/v1/jobs", params={"limit": 3} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        after = page["last_id"]
        submit()
    assert seen == expected


def test_lists_are_filtered_by_status(client: TestClient, sessions: Sessions, job_id: str, document: Any) -> None:
    client.post("/v1/jobs", json=document)
    client.post(f"/v1/jobs/{job_id}/cancel")

    def ids(**params: Any) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]

    assert ids(status="cancelled") == [job_id]
    assert len(ids(status=["cancelled", "queued"])) == 2
    assert ids(status="running") == []
    assert client.get("/v1/jobs", params={"status": "canceled"}).json()["code"] == "bad_request"


@pytest.mark.parametrize("after", ["job_" + "0" * 26, "nonsense", "\0", "job_" + "z" * 26])
def test_an_unknown_cursor_is_refused(client: TestClient, after: str) -> None:
    answer = client.get("/v1/jobs", params={"after": after})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_cancel(client: TestClient, held: Claim, sessions: Sessions) -> None:
    url = f"/v1/jobs/{held.job_id}/cancel"
    assert [client.post(url).json()["status"] for _ in range(2)] == ["cancelling"] * 2
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", [])
    answer = client.post(url)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("place", ["", "/recipe", "/events", "/artifacts", "/artifacts/config.json", "/report"])
def test_another_tenants_job_is_as_good_as_absent(
    client_of: Callable[[str], TestClient], job_id: str, place: str
) -> None:
    stranger = client_of("other")
    absent = "job_" + "0" * 26
    theirs, none = (stranger.get(f"/v1/jobs/{each}{place}") for each in (job_id, absent))
    assert (theirs.status_code, none.status_code) == (404, 404)
    known = {"detail", "request_id"}
    assert {k: v for k, v in theirs.json().items() if k not in known} == {
        k: v for k, v in none.json().items() if k not in known
    }
    assert theirs.json()["detail"].replace(job_id, absent) == none.json()["detail"]


def test_another_tenant_cannot_cancel_or_page_from_it(stranger: TestClient, client: TestClient, job_id: str) -> None:
    assert stranger.post(f"/v1/jobs/{job_id}/cancel").status_code == 404
    assert stranger.get("/v1/jobs", params={"after": job_id}).status_code == 400
    assert stranger.get("/v1/jobs").json()["data"] == []
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


def test_the_recipe_reads_back_first_as_posted_then_pinned(
    client: TestClient, sessions: Sessions, held: Claim, recipe: Recipe
) -> None:
    url = f"/v1/jobs/{held.job_id}/recipe"
    assert parse_recipe(client.get(url).text) == recipe
    pinned = recipe.model_dump(mode="json")
    pinned["model"]["revision"] = "c" * 40
    with sessions.begin() as session:
        lifecycle.record(session, held, [RecipeResolved(recipe=pinned)])
    answer = client.get(url)
    assert answer.headers["content-type"] == "application/yaml"
    assert list(yaml.safe_load(answer.text))[:3] == ["version", "name", "model"]
    assert parse_recipe(answer.text).model.revision == "c" * 40
