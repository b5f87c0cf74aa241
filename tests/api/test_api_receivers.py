"""Webhook endpoints and credentials over HTTP; the messages that the lifecycle writes for them."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fixtures.waiting import until
from sqlalchemy import select, text

from api import lifecycle
from api.keys import main
from api.lifecycle import Claim
from api.settings import Settings
from api.store import credentials, keys, outbox, webhooks
from api.store.models import WebhookEndpoint, WebhookMessage
from api.store.session import Sessions
from lathe.webhook_models import WebhookPayload
from optcore.errors import Failure
from optcore.recipe import Recipe

pytestmark = pytest.mark.integration
URL = "https://hooks.example.com/lathe"
WRONG = Failure(kind="user_error", code="recipe_invalid", message="no")


def test_a_secret_is_shown_once(client: TestClient, stranger: TestClient, sessions: Sessions) -> None:
    made = client.post("/v1/webhook_endpoints", json={"url": URL})
    assert made.status_code == 201
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    (listed,) = client.get("/v1/webhook_endpoints").json()["data"]
    assert listed == {**made.json(), "secret": None}
    assert stranger.get("/v1/webhook_endpoints").json()["data"] == []
    with sessions() as session:
        dump = "".join(str(row) for row in session.execute(text("SELECT * FROM webhook_endpoints")).all())
    assert secret not in dump
    place = made.headers["location"]
    assert stranger.delete(place).status_code == 404
    assert [client.delete(place).status_code for _ in range(2)] == [204, 404]
    assert client.delete("/v1/webhook_endpoints/x%00").status_code == 404


def test_a_repeated_request_gets_the_same_secret_and_the_database_none(client: TestClient, sessions: Sessions) -> None:
    first, second = (
        client.post("/v1/webhook_endpoints", json={"url": URL}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert first.json() == second.json()
    assert len(client.get("/v1/webhook_endpoints").json()["data"]) == 1
    with sessions() as session:
        dump = "".join(str(row) for row in session.execute(text("SELECT * FROM idempotency_keys")).all())
    assert first.json()["secret"] not in dump


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://user:pw@hooks.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/",
        "https:///path",
        "https://host:99999/",
        "https://[x/",
        "ftp://hooks.example.com/",
        "https://hooks.example.com/a\nb",
        "https://" + "a" * 3000,
    ],
)
def test_receivers_that_cannot_be(client: TestClient, url: str) -> None:
    answer = client.post("/v1/webhook_endpoints", json={"url": url})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["errors"][0]["pointer"] == "/url"


def test_unknown_event_types_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/webhook_endpoints", json={"url": URL, "events": ["job.exploded"]})
    assert answer.json()["errors"][0]["pointer"] == "/events/0"


def _subscribe(sessions: Sessions, settings: Settings, project_id: str, *events: str) -> str:
    with sessions.begin() as session:
        endpoint, _ = webhooks.create_endpoint(session, settings.vault, project_id, URL, events)
    return endpoint.id


def test_the_end_of_a_job_is_told_to_who_asked_for_it(sessions: Sessions, settings: Settings, held: Claim) -> None:
    wanted = _subscribe(sessions, settings, "acme", "job.failed", "job.cancelled")
    _subscribe(sessions, settings, "acme", "job.succeeded")
    _subscribe(sessions, settings, "other", "job.failed")
    with sessions.begin() as session:
        webhooks.disable_endpoint(session, _subscribe(sessions, settings, "acme", "job.failed"), "owner")
    with sessions.begin() as session:
        lifecycle.fail(session, held, WRONG)
    with sessions.begin() as session:
        (message,) = session.scalars(select(WebhookMessage)).all()
        announced = [m.payload for m in outbox.take(session) if m.topic == "deliver_webhook"]
    assert message.endpoint_id == wanted
    assert announced == [{"message_id": message.id}]
    payload = WebhookPayload.model_validate(message.payload)
    assert (payload.type, payload.data["status"], payload.data["sequence"]) == ("job.failed", "failed", 3)
    assert payload.data["failure"]["code"] == "recipe_invalid"


def test_a_removed_receiver_takes_its_messages_along(
    sessions: Sessions, settings: Settings, held: Claim, client: TestClient
) -> None:
    endpoint_id = _subscribe(sessions, settings, "acme", "job.failed")
    with sessions.begin() as session:
        lifecycle.fail(session, held, WRONG)
    client.delete(f"/v1/webhook_endpoints/{endpoint_id}")
    with sessions() as session:
        assert session.scalars(select(WebhookMessage)).all() == []
        assert session.scalars(select(WebhookEndpoint)).all() == []


def test_a_token_goes_in_and_never_comes_out(
    client: TestClient, stranger: TestClient, sessions: Sessions, settings: Settings
) -> None:
    token = "hf_" + "s" * 30
    put = [client.put("/v1/credentials/hub-main", json={"token": each}) for each in ("hf_old", token)]
    listed = client.get("/v1/credentials")
    assert [row["name"] for row in listed.json()["data"]] == ["hub-main"]
    assert not any(secret in answer.text for secret in ("hf_old", token) for answer in (*put, listed))
    with sessions() as session:
        assert credentials.token(session, settings.vault, "acme", "hub-main") == token
        assert credentials.token(session, settings.vault, "other", "hub-main") is None
        dump = "".join(str(row) for row in session.execute(text("SELECT * FROM credentials")).all())
    assert token not in dump
    assert stranger.get("/v1/credentials").json()["data"] == []
    assert stranger.delete("/v1/credentials/hub-main").status_code == 404
    assert [client.delete("/v1/credentials/hub-main").status_code for _ in range(2)] == [204, 404]


@pytest.mark.parametrize(
    "body",
    [{"token": ""}, {"token": "a b"}, {"token": "hf_secret\n"}, {"token": "hf_secret", "x": 1}, {}, [], {"token": 1}],
)
def test_refused_tokens_are_not_echoed(client: TestClient, body: Any) -> None:
    answer = client.put("/v1/credentials/main", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert "hf_secret" not in answer.text


def test_keys_are_made_refused_and_revoked(
    sessions: Sessions, client_of: Callable[[str], TestClient], recipe: Recipe
) -> None:
    with sessions.begin() as session:
        row, key = keys.create(session, "acme")
    client = TestClient(client_of("acme").app, headers={"Authorization": f"Bearer {key}"})
    assert client.get("/v1/jobs").status_code == 200
    with sessions.begin() as session:
        dump = "".join(str(row) for row in session.execute(text("SELECT * FROM api_keys")).all())
        assert key not in dump
        assert [keys.revoke(session, "acme", row.id) for _ in range(2)] == ["acme", None]
    # Revoked in the database, past the service: it is told, and not at once where the machine is busy.
    until(lambda: client.get("/v1/jobs").status_code == 401, "the key to be refused")


def test_the_command_makes_a_key_that_works(
    database_url: str,
    client_of: Callable[[str], TestClient],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"DATABASE_URL": database_url, "DATA_DIR": "/none", "SECRET_KEY": "k" * 40}.items():
        monkeypatch.setenv(f"LATHE_{name}", value)
    assert main(["create", "--project", "acme"]) == 0
    printed = capsys.readouterr()
    key, key_id = printed.out.strip(), printed.err.partition(":")[0]
    client = TestClient(client_of("other").app, headers={"Authorization": f"Bearer {key}"})
    assert client.get("/v1/jobs").status_code == 200
    assert [main(["revoke", key_id]) for _ in range(2)] == [0, 1]
    assert client.get("/v1/jobs").status_code == 401
    with pytest.raises(SystemExit):
        main(["create", "--project", "a\nb"])
