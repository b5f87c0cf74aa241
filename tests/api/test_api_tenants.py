"""Two projects: whatever one of them has, the other gets the answer of something that does not exist."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fixtures.waiting import until
from pydantic import SecretStr
from sqlalchemy import func, text, update

from api import lifecycle
from api import projects as projects_command
from api.keys import main as keys_command
from api.lifecycle import ArtifactFile
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys, projects
from api.store.models import ApiKey
from api.store.session import Sessions
from lathe.models import SCOPES

pytestmark = pytest.mark.integration

BODIES: dict[str, Any] = {
    "put_credential": {"token": "hf_stranger"},
    "create_webhook_endpoint": {"url": "https://example.com/"},
    "update_webhook_endpoint": {},
    "replay_webhook_messages": {"since": "2026-01-01T00:00:00Z"},
    "create_key": {"scopes": ["jobs:read"]},
}


def _operations(client: TestClient) -> list[tuple[str, str, dict[str, Any]]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(path, verb, operation) for path, verbs in paths.items() for verb, operation in verbs.items()]


def test_no_endpoint_opens_what_is_another_projects(
    stranger: TestClient, sessions: Sessions, belongings: dict[str, str]
) -> None:
    tried = 0
    for path, verb, operation in _operations(stranger):
        if "{" not in path or operation["operationId"] in {"get_problem", "put_credential"}:
            continue
        address = path.format(**{"message_id": "msg_" + "0" * 26, **belongings})
        answer = stranger.request(verb, address, json=BODIES.get(operation["operationId"]))
        assert answer.status_code == 404, f"{verb} {address}: {answer.status_code} {answer.text}"
        assert not any(secret in answer.text for secret in ("secret", "digest", "https://a.example"))
        tried += 1
    assert tried >= 17
    with sessions() as session:
        assert session.scalar(text("SELECT status FROM jobs")) == "succeeded"
        assert session.scalar(text("SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL")) == 0


def test_no_list_shows_what_is_another_projects(stranger: TestClient, belongings: dict[str, str]) -> None:
    for path, verb, operation in _operations(stranger):
        asks = any(each["required"] for each in operation.get("parameters", []))
        if verb == "get" and "{" not in path and path.startswith("/v1/") and not asks:
            answer = stranger.get(path)
            assert answer.status_code == 200, path
            shown = [value for name, value in belongings.items() if name != "path" and value in answer.text]
            assert not shown, f"{operation['operationId']} shows {shown}"


def test_a_credential_of_the_same_name_is_a_credential_of_ones_own(
    client: TestClient, stranger: TestClient, sessions: Sessions, settings: Settings, belongings: dict[str, str]
) -> None:
    assert stranger.put("/v1/credentials/hub-main", json={"token": "hf_stranger"}).status_code == 200
    with sessions() as session:
        assert credentials.token(session, settings.vault, "acme", "hub-main") == "hf_secret"
    assert client.delete("/v1/credentials/hub-main").status_code == 204
    assert len(stranger.get("/v1/credentials").json()["data"]) == 1


def test_another_projects_idempotency_key_is_another_key(
    client: TestClient, stranger: TestClient, document: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "same"}
    ours = client.post("/v1/jobs", json=document, headers=headers).json()["id"]
    theirs = stranger.post("/v1/jobs", json=document | {"seed": 3}, headers=headers)
    assert (theirs.status_code, theirs.json()["id"] != ours) == (201, True)


def test_every_route_names_the_scope_that_it_needs(
    client_of: Callable[[str], TestClient], sessions: Sessions, belongings: dict[str, str]
) -> None:
    """A key without any scope may look at the catalog and at its project, and at nothing else."""
    bare = client_of("acme")
    with sessions.begin() as session:
        _, key = keys.create(session, "acme", scopes=())
    bare.headers["Authorization"] = f"Bearer {key}"
    allowed = []
    for path, verb, operation in _operations(bare):
        if not path.startswith("/v1/"):
            continue
        address = path.format(**{"message_id": "msg_" + "0" * 26, **belongings})
        answer = bare.request(verb, address, json=BODIES.get(operation["operationId"]))
        if answer.status_code != 403:
            allowed.append(operation["operationId"])
    assert sorted(allowed) == ["get_project", "list_formats", "list_techniques", "list_templates"]


def test_a_key_makes_no_key_that_may_do_more(client_of: Callable[[str], TestClient]) -> None:
    owner = client_of("acme")
    made = owner.post("/v1/keys", json={"name": "ci", "scopes": ["jobs:read", "keys:write"], "expires_in_days": 30})
    assert made.status_code == 201, made.text
    assert made.json()["key"].startswith(made.json()["prefix"])
    owner.headers["Authorization"] = f"Bearer {made.json()['key']}"
    assert owner.get("/v1/jobs").status_code == 200
    assert owner.post("/v1/jobs", json={}).json()["code"] == "forbidden"
    assert owner.post("/v1/keys", json={"scopes": ["jobs:write"]}).json()["code"] == "forbidden"
    assert owner.post("/v1/keys", json={"scopes": ["everything"]}).status_code == 422
    assert owner.post("/v1/keys", json={"scopes": ["jobs:read"]}).status_code == 201


def test_a_key_ends_when_it_expires_or_is_revoked(client_of: Callable[[str], TestClient], sessions: Sessions) -> None:
    owner, other = client_of("acme"), client_of("acme")
    made = owner.post("/v1/keys", json={"scopes": list(SCOPES), "expires_in_days": 1}).json()
    other.headers["Authorization"] = f"Bearer {made['key']}"
    assert other.get("/v1/jobs").status_code == 200
    listed = {row["id"]: row for row in owner.get("/v1/keys").json()["data"]}
    assert listed[made["id"]]["last_used_at"] is not None
    assert listed[made["id"]]["key"] is None
    with sessions.begin() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=func.now()))
    until(lambda: other.get("/v1/jobs").status_code == 401)
    second = owner.post("/v1/keys", json={"scopes": ["jobs:read"]}).json()
    other.headers["Authorization"] = f"Bearer {second['key']}"
    assert other.get("/v1/jobs").status_code == 200
    assert [owner.delete(f"/v1/keys/{second['id']}").status_code for _ in range(2)] == [204, 404]
    assert other.get("/v1/jobs").status_code == 401


def test_the_audit_log_tells_who_did_what_and_no_secret(client: TestClient, document: dict[str, Any]) -> None:
    job_id = client.post("/v1/jobs", json=document).json()["id"]
    client.put("/v1/credentials/hub", json={"token": "hf_topsecret"})
    client.post(f"/v1/jobs/{job_id}/cancel", headers={"X-Request-Id": "request-0001"})
    entries = client.get("/v1/audit").json()
    told = [(entry["action"], entry["target"]) for entry in entries["data"]]
    assert told == [("job.cancel", job_id), ("credential.put", "hub"), ("job.create", job_id)]
    assert entries["data"][0]["request_id"] == "request-0001"
    assert all(entry["actor"].startswith("key_") for entry in entries["data"])
    assert "hf_topsecret" not in str(entries)
    older = client.get("/v1/audit", params={"limit": 1, "after": entries["data"][0]["id"]}).json()
    assert (older["data"][0]["action"], older["has_more"]) == ("credential.put", True)


def test_what_is_refused_is_not_in_the_audit_log(client: TestClient, job_id: str) -> None:
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 409
    assert client.get("/v1/audit").json()["data"] == []


def test_limits_bind_and_say_so(client: TestClient, sessions: Sessions, document: dict[str, Any]) -> None:
    def refused() -> str:
        answer = client.post("/v1/jobs", json=document)
        assert (answer.status_code, answer.json()["code"]) == (403, "quota_exceeded")
        return str(answer.json()["detail"])

    job_id = client.post("/v1/jobs", json=document).json()["id"]
    with sessions.begin() as session:
        projects.limit(session, "acme", max_unfinished=1)
    assert "1 of its 1 unfinished jobs" in refused()
    with sessions.begin() as session:
        projects.limit(session, "acme", max_unfinished=None, max_storage_bytes=100)
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        lifecycle.finish(session, claim, "digest", [ArtifactFile("a", 100, "0" * 64)])
    assert "100 of its 100 bytes" in refused()
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert client.post("/v1/jobs", json=document).status_code == 201
    assert client.get("/v1/project").json()["unfinished"] == 1


def test_requests_are_limited_by_key(sessions: Sessions, settings: Settings) -> None:
    few = settings.model_copy(update={"rate_limit": "3/minute"})
    with sessions.begin() as session:
        made = [keys.create(session, "acme")[1] for _ in range(2)]
    with TestClient(create_app(few)) as client:
        one, other = ({"Authorization": f"Bearer {key}"} for key in made)
        assert [client.get("/v1/jobs", headers=one).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = client.get("/v1/jobs", headers=one)
        assert (refused.json()["code"], refused.json()["retryable"]) == ("too_many_requests", True)
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert client.get("/v1/jobs", headers=other).status_code == 200


def test_processes_that_share_a_redis_count_together(
    sessions: Sessions, settings: Settings, empty_redis_url: str
) -> None:
    shared = {"rate_limit": "3/minute", "rate_limit_storage": SecretStr(empty_redis_url)}
    with sessions.begin() as session:
        headers = {"Authorization": f"Bearer {keys.create(session, 'acme')[1]}"}
    few = settings.model_copy(update=shared)
    with TestClient(create_app(few), headers=headers) as one, TestClient(create_app(few), headers=headers) as other:
        asked = [client.get("/v1/jobs").status_code for client in (one, other, one, other, one)]
    assert asked == [200, 200, 200, 429, 429]


def test_a_storage_of_rate_limits_that_is_away_lets_requests_through(sessions: Sessions, settings: Settings) -> None:
    away = {"rate_limit": "1/minute", "rate_limit_storage": SecretStr("redis://127.0.0.1:9/0")}
    with sessions.begin() as session:
        headers = {"Authorization": f"Bearer {keys.create(session, 'acme')[1]}"}
    with TestClient(create_app(settings.model_copy(update=away)), headers=headers) as client:
        assert [client.get("/v1/jobs").status_code for _ in range(3)] == [200, 200, 200]


def test_the_operators_commands(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("DATABASE_URL", settings.database_url), ("DATA_DIR", settings.data_dir)):
        monkeypatch.setenv(f"LATHE_{name}", str(value))
    monkeypatch.setenv("LATHE_SECRET_KEY", "k" * 40)
    assert keys_command(["create", "--project", "new", "--scope", "jobs:read", "--days", "7"]) == 0
    assert capsys.readouterr().out.startswith("lk_")
    assert projects_command.main(["limit", "new", "--max-running", "4"]) == 0
    assert projects_command.main(["limit", "nobody", "--max-running", "4"]) == 1
    capsys.readouterr()
    assert projects_command.main(["list"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if " new " in line]
    assert "max_running=4" in line
    assert "max_storage_bytes=None" in line
