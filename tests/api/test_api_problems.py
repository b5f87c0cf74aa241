"""Every error is one RFC 9457 document, and says what, where and what to do."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fixtures.waiting import until
from sqlalchemy import text

from api.main import create_app
from api.problems import MAX_reasons
from api.settings import Settings
from api.store import keys, projects
from api.store.session import Sessions, make_engine, make_sessions
from lathe.local.postgres import Postgres
from lathe.models import Problem
from migrations import upgrade
from optcore.errors import RecipeError
from optcore.recipe import recipe_from

pytestmark = pytest.mark.integration
JSON = {"content-type": "application/json"}


def _problem(answer: Any, status: int, code: str) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert problem.request_id == answer.headers["x-request-id"]
    assert problem.detail
    assert answer.headers["x-content-type-options"] == "nosniff"
    return problem


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"chain": [{"technique": "ptq", "scheme": "nvfp5"}]}, "/chain/0/scheme"),
        ({"chain": [{"technique": "ptq", "scheme": "fp8", "kv_cach": "fp8"}]}, "/chain/0/kv_cach"),
        ({"calibraton": {}}, "/calibraton"),
        ({"calibration": {"samples": 0}}, "/calibration/samples"),
        ({"model": {}}, "/model"),
    ],
)
def test_a_wrong_recipe_is_refused_in_the_words_of_the_library(
    client: TestClient, document: dict[str, Any], change: dict[str, Any], pointer: str
) -> None:
    wrong = document | change
    with pytest.raises(RecipeError) as error:
        recipe_from(wrong)
    problem = _problem(client.post("/v1/jobs", json=wrong), 422, "recipe_invalid")
    assert (problem.detail, problem.remedy) == (error.value.message, error.value.remedy)
    assert problem.errors[0].pointer == error.value.field == pointer


def test_a_chain_that_does_not_fit_is_refused_before_anything_is_queued(
    client: TestClient, document: dict[str, Any]
) -> None:
    twice = document | {"chain": document["chain"] * 2}
    problem = _problem(client.post("/v1/jobs", json=twice), 422, "recipe_invalid")
    assert problem.errors[0].pointer == "/chain/1"
    assert problem.remedy


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "bad_request"),
        (b"[" * 100_000, JSON, 400, "bad_request"),
        (b"9" * 5000, JSON, 400, "bad_request"),
        (b'{"name": "a\\u0000b"}', JSON, 400, "bad_request"),
        (b'{"name": "\\ud800"}', JSON, 400, "bad_request"),
        (b'{"\\u0000": 1}', JSON, 400, "bad_request"),
        (b"\xff", JSON, 400, "bad_request"),
        (b"[]", JSON, 422, "recipe_invalid"),
        (b'{"seed": NaN}', JSON, 422, "recipe_invalid"),
        (b"model: {}", {"content-type": "text/yaml"}, 415, "unsupported_media_type"),
        (b" " * (256 * 1024 + 1), JSON, 413, "body_too_large"),
        (b"{}", JSON | {"Idempotency-Key": "k" * 256}, 400, "bad_request"),
    ],
)
def test_bodies_that_are_no_recipes(
    client: TestClient, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    _problem(client.post("/v1/jobs", content=body, headers=headers), status, code)


def test_an_answer_is_no_longer_than_it_helps(client: TestClient, document: dict[str, Any]) -> None:
    wrong = {**document, "chain": [{"technique": f"x{number}"} for number in range(5_000)]}
    problem = _problem(client.post("/v1/jobs", json=wrong), 422, "recipe_invalid")
    assert "4999 more" in problem.detail
    assert len(problem.errors) == MAX_reasons


def test_a_database_that_was_away_costs_a_submission_nothing_but_time(
    settings: Settings, document: dict[str, Any], data_dir: Path
) -> None:
    """It is killed and comes back: the same request is refused meanwhile, then done once."""
    server = Postgres(data_dir / "postgres")
    with server as url:
        upgrade(url)
        engine = make_engine(url)
        with make_sessions(engine).begin() as session:
            _, key = keys.create(session, projects.ensure(session, "acme").id)
        app = create_app(settings.model_copy(update={"database_url": url}))
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "k1"}
        with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
            assert client.get("/v1/jobs").json()["data"] == []
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGQUIT)
            server.process.wait(30)
            answer = client.post("/v1/jobs", json=document)
            assert _problem(answer, 503, "unavailable").retryable
            assert answer.headers["retry-after"] == "2"
            server.revive()
            made = until(lambda: (again := client.post("/v1/jobs", json=document)).status_code == 201 and again, "it")
            assert client.post("/v1/jobs", json=document).content == made.content
            assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [made.json()["id"]]
        engine.dispose()


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\t", "\xe9"])
def test_an_idempotency_key_is_readable_and_short(client: TestClient, document: dict[str, Any], key: str) -> None:
    answer = client.post("/v1/jobs", json=document, headers={"Idempotency-Key": key.encode("latin-1")})
    assert "idempotency-key" in _problem(answer, 400, "bad_request").detail
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_body_that_hides_its_length_is_cut_off(client: TestClient) -> None:
    chunks = (b" " * 65536 for _ in range(6))
    _problem(client.post("/v1/jobs", content=chunks, headers=JSON), 413, "body_too_large")


@pytest.mark.parametrize("key", [None, "lk_" + "a" * 43, "lk_\xe9", "x" * 10_000, ""])
def test_without_a_known_key_there_is_nothing(client: TestClient, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode("latin-1")}
    answer = TestClient(client.app).get("/v1/jobs", headers=headers)
    _problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_addresses_and_methods_that_do_not_exist(client: TestClient) -> None:
    _problem(client.get("/v2/jobs"), 404, "not_found")
    _problem(client.get("/v1/jobs/job_%00"), 404, "not_found")
    answer = client.delete("/v1/jobs")
    _problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_parameters_are_named(client: TestClient) -> None:
    problem = _problem(client.get("/v1/jobs", params={"limit": 101}), 400, "bad_request")
    assert problem.detail.startswith("query parameter limit:")


def test_the_type_leads_to_what_it_means(client: TestClient) -> None:
    problem = _problem(client.get("/v1/jobs/x"), 404, "not_found")
    assert "another tenant's" in client.get(problem.type).json()["meaning"]
    _problem(client.get("/problems/nonsense"), 404, "not_found")


def test_a_bug_is_an_answer_too(client: TestClient, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(text("DROP TABLE credentials"))
    problem = _problem(client.get("/v1/credentials"), 500, "internal")
    assert "credentials" not in problem.detail


def test_a_request_id_is_taken_over_when_it_is_harmless(client: TestClient) -> None:
    for given, kept in (("build-12345678", True), ('evil"\\n{', False), ("x" * 65, False)):
        assert (client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given) is kept


def test_a_database_that_is_away_is_said_so(settings: Settings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://u:hunter22@127.0.0.1:9/none"})
    with TestClient(create_app(away)) as client:
        answer = client.get("/v1/jobs", headers={"Authorization": "Bearer lk_x"})
        assert _problem(answer, 503, "unavailable").retryable
        assert answer.headers["retry-after"] == "2"
        assert "hunter22" not in answer.text
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "degraded")
        assert client.get("/healthz").json() == {"status": "ok"}
