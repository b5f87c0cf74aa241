"""Webhook endpoints and their messages over HTTP: changed, tried out, looked into, sent again; by their owner only."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dashboard_service import serving
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.ids import new_id
from api.settings import Settings
from api.store import keys, webhook_deliveries
from api.store.session import Sessions
from api.store.webhook_deliveries import Outcome, Outgoing
from lathe import AsyncClient, Client, Conflict

pytestmark = pytest.mark.integration
URL = "https://hooks.example.com/lathe"


@pytest.fixture
def place(client: TestClient) -> str:
    """The address of an endpoint of `acme`."""
    return client.post("/v1/webhook_endpoints", json={"url": URL}).headers["location"]


def _run(sessions: Sessions, statement: str, **values: object) -> list[Any]:
    with sessions.begin() as session:
        result = session.execute(text(statement), values)
        return list(result.all()) if result.returns_rows else []


def _try(sessions: Sessions, settings: Settings, message_id: str, **outcome: Any) -> Outgoing:
    """One attempt at a message, whether it is due or not."""
    _run(sessions, "UPDATE webhook_messages SET wake_at = now() WHERE id = :id", id=message_id)
    with sessions.begin() as session:
        outgoing = webhook_deliveries.begin(session, settings.vault, message_id)
    assert outgoing is not None
    with sessions.begin() as session:
        webhook_deliveries.end(session, outgoing, Outcome(**{"delivered": False, "seconds": 0.5, **outcome}), 3)
    return outgoing


def test_an_endpoint_is_changed_and_what_is_absent_stays(client: TestClient, place: str) -> None:
    changed = client.patch(place, json={"events": ["gate.failed"], "description": "for the nightly run"})
    assert changed.status_code == 200
    assert client.get(place).json() == changed.json()
    assert (changed.json()["url"], changed.json()["events"], changed.json()["secret"]) == (URL, ["gate.failed"], None)
    off = client.patch(place, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"], off["description"]) == (False, "owner", "for the nightly run")
    on = client.patch(place, json={"enabled": True, "url": URL + "/2"}).json()
    assert (on["enabled"], on["disabled_at"], on["disabled_reason"], on["url"]) == (True, None, None, URL + "/2")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "http://hooks.example.com/"}, "/url"),
        ({"events": ["job.exploded"]}, "/events/0"),
        ({"events": []}, "/events"),
        ({"events": ["webhook.test"]}, "/events/0"),
        ({"secret": "whsec_mine"}, "/secret"),
        ({"description": "x" * 501}, "/description"),
    ],
)
def test_changes_that_cannot_be(client: TestClient, place: str, change: dict[str, Any], pointer: str) -> None:
    before = client.get(place).json()
    refused = client.patch(place, json=change)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)
    assert client.get(place).json() == before


def test_enabling_forgets_what_had_failed(client: TestClient, place: str, sessions: Sessions) -> None:
    _run(
        sessions,
        "UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'undelivered', dead_messages = 3,"
        " held_until = now() + interval '1 hour'",
    )
    broken = client.get(place).json()
    assert (broken["enabled"], broken["disabled_reason"], broken["dead_messages"]) == (False, "undelivered", 3)
    assert client.patch(place, json={"enabled": False}).json()["disabled_reason"] == "undelivered"
    mended = client.patch(place, json={"enabled": True}).json()
    assert (mended["enabled"], mended["dead_messages"], mended["held_until"]) == (True, 0, None)


def test_endpoints_come_in_pages(client: TestClient) -> None:
    made = [client.post("/v1/webhook_endpoints", json={"url": f"{URL}/{n}"}).json()["id"] for n in range(3)]
    first = client.get("/v1/webhook_endpoints", params={"limit": 2}).json()
    rest = client.get("/v1/webhook_endpoints", params={"limit": 2, "after": first["last_id"]}).json()
    assert [row["id"] for row in (*first["data"], *rest["data"])] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert client.get("/v1/webhook_endpoints", params={"after": "x"}).status_code == 400


def test_a_new_secret_is_shown_once_and_the_old_one_is_kept_for_a_day(
    client: TestClient, sessions: Sessions, settings: Settings
) -> None:
    made = client.post("/v1/webhook_endpoints", json={"url": URL})
    place, old = made.headers["location"], made.json()["secret"]
    rotated, repeated = (client.post(f"{place}/rotate_secret", headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert (rotated.status_code, rotated.json()) == (200, repeated.json())
    assert repeated.headers["idempotent-replayed"] == "true"
    new = rotated.json()["secret"]
    assert new.startswith("whsec_")
    assert new != old
    until = datetime.fromisoformat(rotated.json()["previous_secret_until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=25)
    assert client.get(place).json()["secret"] is None
    message_id = client.post(f"{place}/test").json()["id"]
    assert _try(sessions, settings, message_id, retry_in_seconds=1.0).secrets == (new, old)
    third = client.post(f"{place}/rotate_secret").json()["secret"]
    assert _try(sessions, settings, message_id, retry_in_seconds=1.0).secrets == (third, new), (
        "a second rotation drops a leaked secret"
    )
    dump = "".join(
        str(row)
        for name in ("webhook_endpoints", "idempotency_keys")
        for row in _run(sessions, f"SELECT * FROM {name}")
    )
    assert not any(secret in dump for secret in (old, new, third))
    assert new not in repr(_try(sessions, settings, message_id, retry_in_seconds=1.0))


def test_a_test_is_a_message_like_any_other(client: TestClient, place: str, sessions: Sessions) -> None:
    sent, again = (client.post(f"{place}/test", headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert (sent.status_code, sent.json()) == (201, again.json())
    assert (sent.json()["type"], sent.json()["job_id"], sent.json()["status"]) == ("webhook.test", None, "pending")
    assert client.get(sent.headers["location"]).json() == sent.json()
    assert _run(sessions, "SELECT topic, payload FROM outbox") == [
        ("deliver_webhook", {"message_id": sent.json()["id"]})
    ]
    client.patch(place, json={"enabled": False})
    for verb in ("test", "replay"):
        refused = client.post(f"{place}/{verb}", json={"since": "2026-01-01T00:00:00Z"})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "enabled" in refused.json()["remedy"]


def test_the_log_of_attempts(client: TestClient, place: str, sessions: Sessions, settings: Settings) -> None:
    one, two = (client.post(f"{place}/test").json()["id"] for _ in range(2))
    _try(sessions, settings, one, error="no complete answer within 20 s", retry_in_seconds=5.0)
    _try(sessions, settings, two, delivered=True, status_code=204)
    _try(sessions, settings, one, status_code=500)
    log = client.get(f"{place}/deliveries").json()
    assert [(row["message_id"], row["attempt"], row["status_code"]) for row in log["data"]] == [
        (one, 2, 500),
        (two, 1, 204),
        (one, 1, None),
    ]
    assert set(log["data"][2]) == {
        *("message_id", "message_status", "type", "job_id", "attempt", "status_code", "error", "seconds", "at"),
    }
    assert (log["data"][2]["error"], log["data"][2]["message_status"]) == ("no complete answer within 20 s", "failed")
    failed = client.get(f"{place}/deliveries", params={"status": "failed"}).json()["data"]
    assert [row["attempt"] for row in failed] == [2, 1]
    pages, after = [], None
    while True:
        page = client.get(f"{place}/deliveries", params={"limit": 1, **({"after": after} if after else {})}).json()
        pages += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert pages == log["data"]
    other = client.post("/v1/webhook_endpoints", json={"url": URL}).headers["location"]
    for foreign in (f"{one}.1", f"{one}.9", f"{one}.x", f"{one}", "x", f"{one}.99999999999"):
        where = other if foreign == f"{one}.1" else place
        assert client.get(f"{where}/deliveries", params={"after": foreign}).status_code == 400


def test_a_message_is_sent_again_when_its_owner_wants_it(
    client: TestClient, place: str, sessions: Sessions, settings: Settings
) -> None:
    message_id = client.post(f"{place}/test").json()["id"]
    _try(sessions, settings, message_id, status_code=500, hold_seconds=600)
    assert client.get(place).json()["held_until"]
    _run(sessions, "DELETE FROM outbox")
    for _ in range(2):
        asked = client.post(f"/v1/webhook_messages/{message_id}/redeliver", headers={"Idempotency-Key": "once"})
        assert (asked.status_code, asked.json()["status"]) == (200, "pending")
    assert len(_run(sessions, "SELECT 1 FROM outbox")) == 1
    assert client.get(place).json()["held_until"] is None, "now means now"
    assert _try(sessions, settings, message_id, delivered=True).tries == 1


def test_a_period_is_replayed(client: TestClient, place: str, sessions: Sessions, settings: Settings) -> None:
    ids = [client.post(f"{place}/test").json()["id"] for _ in range(5)]
    for number, message_id in enumerate(ids):
        _try(sessions, settings, message_id, delivered=number == 1)
        _run(
            sessions,
            "UPDATE webhook_messages SET created_at = CAST(:at AS timestamptz) WHERE id = :id",
            at=f"2026-01-0{number + 1}T00:00:00Z",
            id=message_id,
        )
    _run(sessions, "UPDATE webhook_endpoints SET disabled_at = NULL, disabled_reason = NULL")
    _run(sessions, "DELETE FROM outbox")

    def replay(**body: Any) -> tuple[int, Any]:
        answer = client.post(f"{place}/replay", json=body)
        return answer.status_code, answer.json().get("messages")

    assert replay(since="2026-01-02T00:00:00Z", until="2026-01-04T00:00:00Z") == (200, 1)
    assert _run(sessions, "SELECT payload->>'message_id' FROM outbox") == [(ids[2],)]
    assert replay(since="2026-01-02T00:00:00Z", statuses=["failed", "delivered"]) == (200, 3)
    assert [row[0] for row in _run(sessions, "SELECT payload->>'message_id' FROM outbox ORDER BY id")][1:] == [
        ids[1],
        ids[3],
        ids[4],
    ]
    assert replay(since="2026-01-02T00:00:00Z") == (200, 0), "what is on its way is left alone"
    assert [replay(since=wrong)[0] for wrong in ("soon", "2026-01-02T00:00:00", None)] == [422] * 3
    assert replay(since="0001-01-01T00:00:00+14:00", until="9999-12-31T23:59:59-14:00") == (200, 1)


def test_what_is_done_to_a_receiver_is_written_down(client: TestClient, place: str) -> None:
    client.patch(place, json={"enabled": True})
    client.post(f"{place}/rotate_secret")
    message_id = client.post(f"{place}/test").json()["id"]
    client.post(f"/v1/webhook_messages/{message_id}/redeliver")
    client.post(f"{place}/replay", json={"since": "2026-01-01T00:00:00Z"})
    client.delete(place)
    endpoint_id = place.rsplit("/", 1)[1]
    done = [(entry["action"], entry["target"]) for entry in client.get("/v1/audit").json()["data"]]
    assert done[::-1] == [
        ("webhook.create", endpoint_id),
        ("webhook.update", endpoint_id),
        ("webhook.rotate_secret", endpoint_id),
        ("webhook.test", endpoint_id),
        ("webhook.redeliver", message_id),
        ("webhook.replay", endpoint_id),
        ("webhook.delete", endpoint_id),
    ]


def test_a_period_with_too_many_messages_is_refused_whole(client: TestClient, place: str, sessions: Sessions) -> None:
    _run(
        sessions,
        "INSERT INTO webhook_messages (id, endpoint_id, type, payload, status)"
        " SELECT 'msg_' || lpad(n::text, 26, '0'), :id, 'webhook.test', '{}', 'failed' FROM generate_series(1, 1001) n",
        id=place.rsplit("/", 1)[1],
    )
    refused = client.post(f"{place}/replay", json={"since": "2026-01-01T00:00:00Z"})
    assert (refused.status_code, refused.json()["remedy"]) == (409, "replay a shorter one")
    assert _run(sessions, "SELECT 1 FROM webhook_messages WHERE status = 'pending'") == []


def _calls(place: str, message_id: str) -> list[tuple[str, str, bool]]:
    """Every operation on an endpoint or a message: method, address, whether it changes anything."""
    return [
        ("GET", place, False),
        ("PATCH", place, True),
        ("POST", f"{place}/rotate_secret", True),
        ("POST", f"{place}/test", True),
        ("GET", f"{place}/deliveries", False),
        ("POST", f"{place}/replay", True),
        ("GET", f"/v1/webhook_messages/{message_id}", False),
        ("POST", f"/v1/webhook_messages/{message_id}/redeliver", True),
        ("DELETE", place, True),
    ]


def test_another_tenant_finds_nothing_and_a_key_needs_its_scope(
    client: TestClient, stranger: TestClient, place: str, sessions: Sessions, client_of: Callable[[str], TestClient]
) -> None:
    message_id = client.post(f"{place}/test").json()["id"]
    app = client_of("acme").app
    with sessions.begin() as session:
        made = [keys.create(session, "acme", scopes=[scope]) for scope in ("webhooks:read", "jobs:write")]
    reader, outsider = (TestClient(app, headers={"Authorization": f"Bearer {key}"}) for _, key in made)
    body = {"since": "2026-01-01T00:00:00Z"}
    for method, address, changes in _calls(place, message_id):
        sent = body if address.endswith("replay") else {}
        assert stranger.request(method, address, json=sent).status_code == 404, address
        assert outsider.request(method, address, json=sent).status_code == 403, address
        assert reader.request(method, address, json=sent).status_code == (403 if changes else 200), address
    nowhere = f"/v1/webhook_endpoints/{new_id('whe')}"
    for method, address, _ in [*_calls(nowhere, new_id("msg")), *_calls("/v1/webhook_endpoints/x%00", "x%00")]:
        sent = body if address.endswith("replay") else {}
        assert client.request(method, address, json=sent).status_code == 404, address
    wrong = client.put(place, json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET, PATCH")


def test_both_clients_of_the_sdk_speak_as_the_service_does(settings: Settings, sessions: Sessions) -> None:
    with serving(settings, sessions) as service:
        key = service.key("acme")
        with Client(service.url, key) as client:
            endpoint = client.webhook_endpoints.create(URL, events=["job.failed"], description="nightly")
            assert client.webhook_endpoints.update(endpoint.id, enabled=True).description == "nightly"
            message = client.webhook_endpoints.test(endpoint.id)
            _try(sessions, settings, message.id, status_code=500)
            assert [row.status_code for row in client.webhook_endpoints.deliveries(endpoint.id, status="failed")] == [
                500
            ]
            since = datetime.now(UTC) - timedelta(hours=1)
            assert client.webhook_endpoints.replay(endpoint.id, since=since).messages == 1
            assert client.webhook_messages.redeliver(message.id).status == "pending"
            assert client.webhook_endpoints.rotate_secret(endpoint.id).secret
        asyncio.run(_the_same_asynchronously(service.url, key, endpoint.id, message.id))


async def _the_same_asynchronously(url: str, key: str, endpoint_id: str, message_id: str) -> None:
    async with AsyncClient(url, key) as client:
        receivers = client.webhook_endpoints
        assert (await receivers.get(endpoint_id)).previous_secret_until
        assert [row.id async for row in receivers.list()] == [endpoint_id]
        assert [row.message_id async for row in receivers.deliveries(endpoint_id)] == [message_id]
        assert (await client.webhook_messages.get(message_id)).type == "webhook.test"
        assert not (await receivers.update(endpoint_id, enabled=False)).enabled
        with pytest.raises(Conflict, match="disabled"):
            await receivers.test(endpoint_id)
        await receivers.delete(endpoint_id)
