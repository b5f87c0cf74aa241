"""The settings: keys, Hub tokens, webhook endpoints, limits, audit log. Each needs its scope, and no other site can."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dashboard_reader import ATTACK, FOREIGN, assert_harmless, assert_named, dashboard, signed_in
from fastapi.testclient import TestClient
from fixtures.waiting import until
from sqlalchemy import text

from api import lifecycle
from api.settings import Settings
from api.store import credentials, keys, projects, webhook_messages, webhooks
from api.store.models import WebhookMessage
from api.store.session import Sessions
from lathe.models import SCOPES, Scope

pytestmark = pytest.mark.integration

Reader = Callable[..., TestClient]
PAGES = ("/settings", "/settings/keys", "/settings/credentials", "/settings/webhooks", "/settings/audit")
NEEDS: dict[str, Scope] = {
    "/settings/keys": "keys:read",
    "/settings/credentials": "credentials:read",
    "/settings/webhooks": "webhooks:read",
    "/settings/audit": "audit:read",
}


@pytest.fixture
def reader_of(settings: Settings, sessions: Sessions) -> Iterator[Reader]:
    with dashboard(settings) as anonymous:

        def make(project_id: str = "acme", *scopes: Scope) -> TestClient:
            return signed_in(anonymous, sessions, project_id, scopes or SCOPES)

        yield make


@pytest.fixture
def reader(reader_of: Reader) -> TestClient:
    return reader_of()


def _once(page: str) -> str:
    found = re.search(r'name="once" value="([^"]+)"', page)
    assert found is not None
    return found.group(1)


def _secret(page: str) -> str:
    found = re.search(r'<code class="secret" tabindex="0">([^<]+)</code>', page)
    assert found is not None, page
    return found.group(1)


def _posts(belongings: dict[str, str], message: str) -> dict[str, dict[str, Any]]:
    """Everything that can be changed, of `acme`."""
    endpoint = f"/settings/webhooks/{belongings['endpoint_id']}"
    return {
        "/settings/keys": {"name": "x", "scope": ["jobs:read"]},
        f"/settings/keys/{belongings['key_id']}/revoke": {},
        "/settings/credentials": {"name": "hub-main", "token": "hf_other"},
        "/settings/credentials/delete": {"name": "hub-main"},
        "/settings/webhooks": {"url": "https://b.example/", "event": ["job.failed"]},
        endpoint: {"url": "https://b.example/", "event": ["job.failed"]},
        f"{endpoint}/enable": {},
        f"{endpoint}/disable": {},
        f"{endpoint}/rotate_secret": {"once": "x"},
        f"{endpoint}/test": {},
        f"{endpoint}/redeliver": {"message": message},
        f"{endpoint}/replay": {"since": "2026-01-01T00:00", "status": ["failed"]},
        f"{endpoint}/delete": {},
    }


@pytest.fixture
def message(sessions: Sessions, belongings: dict[str, str]) -> str:
    with sessions.begin() as session:
        return lifecycle.announce_test(session, belongings["endpoint_id"]).id


def _everything(sessions: Sessions) -> list[Any]:
    tables = ("api_keys", "credentials", "webhook_endpoints", "webhook_messages", "outbox", "audit_log")
    volatile = "- 'last_used_at'"
    with sessions() as session:
        return [
            session.execute(text(f"SELECT to_jsonb(t) {volatile} FROM {table} t ORDER BY 1")).all() for table in tables
        ]


def test_no_other_site_and_no_lesser_key_changes_anything(
    reader_of: Reader, sessions: Sessions, belongings: dict[str, str], message: str
) -> None:
    posts = _posts(belongings, message)
    looker, owner = reader_of("acme", *(scope for scope in SCOPES if scope.endswith(":read"))), reader_of()
    before = _everything(sessions)
    for address, fields in posts.items():
        assert looker.post(address, data=fields).status_code == 403, address
        for headers in FOREIGN:
            bare = TestClient(owner.app, cookies=owner.cookies, follow_redirects=False)
            bare.portal = owner.portal
            assert bare.post(address, data=fields, headers=headers).status_code == 403, (address, headers)
        assert owner.get(address).status_code in {200, 404, 405}, "a link changes nothing"
    assert _everything(sessions) == before


def test_what_is_another_tenants_is_not_there(
    reader_of: Reader, sessions: Sessions, belongings: dict[str, str], message: str
) -> None:
    stranger = reader_of("other")
    before = _everything(sessions)
    for address, fields in _posts(belongings, message).items():
        if any(part in address for part in ("/revoke", "/whe_", "/delete")):
            assert stranger.post(address, data=fields).status_code == 404, address
    assert stranger.get(f"/settings/webhooks/{belongings['endpoint_id']}").status_code == 404
    for address in PAGES:
        shown = stranger.get(address).text
        assert not [value for value in (*belongings.values(), message, "a.example") if value in shown], address
    assert _everything(sessions) == before
    with sessions.begin() as session:
        own, _ = webhooks.create_endpoint(
            session, stranger.app.state.lathe.settings.vault, "other", "https://c.example/", ["job.failed"]
        )
    redelivered = stranger.post(f"/settings/webhooks/{own.id}/redeliver", data={"message": message})
    assert redelivered.status_code == 404, "not by way of one's own endpoint either"


def test_a_key_without_a_scope_is_told_why(reader_of: Reader, belongings: dict[str, str]) -> None:
    bare = reader_of("acme", "jobs:read")
    assert bare.get("/settings").status_code == 200
    for address, scope in NEEDS.items():
        answer = bare.get(address)
        assert answer.status_code == 403
        assert f"lacks the scope <code>{scope}</code>" in answer.text
        assert_named(answer.text)
        assert "hub-main" not in answer.text
    looker = reader_of("acme", "jobs:read", *NEEDS.values())
    for address in list(NEEDS)[:3]:
        shown = looker.get(address).text
        assert "Your key lacks the scope" in shown
        assert '<form method="post" action="/settings' not in shown


def test_a_key_is_shown_once_and_again_for_the_same_form_alone(reader: TestClient, sessions: Sessions) -> None:
    once = _once(reader.get("/settings/keys").text)
    fields = {"name": "ci", "scope": ["jobs:read", "jobs:write"], "days": "30", "once": once}
    made = reader.post("/settings/keys", data=fields)
    secret = _secret(made.text)
    assert made.headers["cache-control"] == "no-store"
    assert _secret(reader.post("/settings/keys", data=fields).text) == secret
    assert secret not in reader.get("/settings/keys").text
    with sessions() as session:
        [row] = [row for row in keys.of(session, "acme") if row.name == "ci"]
    assert row.scopes == ["jobs:read", "jobs:write"]
    assert row.expires_at is not None
    assert (row.expires_at - row.created_at).days == 30
    api = {"Authorization": f"Bearer {secret}"}
    assert reader.get("/v1/jobs", headers=api).status_code == 200
    revoked = reader.post(f"/settings/keys/{row.id}/revoke")
    assert "is revoked" in reader.get(revoked.headers["location"]).text
    assert reader.get("/v1/jobs", headers=api).status_code == 401
    assert reader.post(f"/settings/keys/{row.id}/revoke").status_code == 404


def test_a_key_can_allow_no_more_than_the_readers(reader_of: Reader) -> None:
    some = reader_of("acme", "jobs:read", "keys:read", "keys:write")
    assert re.findall(r'name="scope" value="([^"]+)"', some.get("/settings/keys").text) == [
        "jobs:read",
        "keys:read",
        "keys:write",
    ]
    refused = some.post("/settings/keys", data={"scope": ["jobs:read", "jobs:write"], "name": "more"})
    assert refused.status_code == 403
    assert "lacks the scope jobs:write" in refused.text
    assert 'value="more"' in refused.text, "what was typed is still there"


def test_revoking_ones_own_key_ends_the_session(reader: TestClient, sessions: Sessions) -> None:
    with sessions() as session:
        [own] = keys.of(session, "acme")
    assert "signs you out" in reader.get("/settings/keys").text
    reader.post(f"/settings/keys/{own.id}/revoke")
    until(lambda: reader.get("/settings").status_code == 303)


def test_forms_that_make_no_sense_are_told_so(reader: TestClient, belongings: dict[str, str]) -> None:
    endpoint = f"/settings/webhooks/{belongings['endpoint_id']}"
    for address, fields, said in (
        ("/settings/keys", {"name": "x"}, "scopes"),
        ("/settings/keys", {"scope": "everything"}, "scopes"),
        ("/settings/keys", {"scope": "jobs:read", "days": "-1"}, "expires_in_days"),
        ("/settings/keys", {"scope": "jobs:read", "name": "x" * 101}, "name"),
        ("/settings/credentials", {"name": "../x", "token": "hf_secret"}, "A name is"),
        ("/settings/credentials", {"name": "x", "token": "two words"}, "A name is"),
        ("/settings/credentials", {"name": "x", "token": ""}, "A name is"),
        ("/settings/webhooks", {"url": "javascript:alert(1)", "event": "job.failed"}, "url"),
        ("/settings/webhooks", {"url": "https://127.0.0.1/", "event": "job.failed"}, "not a public"),
        ("/settings/webhooks", {"url": "https://user:pw@a.example/", "event": "job.failed"}, "no user, password"),
        ("/settings/webhooks", {"url": "https://b.example/"}, "events"),
        (endpoint, {"url": "http://169.254.169.254/", "event": "job.failed"}, "not a public"),
        (f"{endpoint}/replay", {"since": "yesterday", "status": "failed"}, "since"),
        (f"{endpoint}/replay", {"since": "2026-01-01T00:00"}, "statuses"),
    ):
        answer = reader.post(address, data=fields)
        assert answer.status_code == 422, (address, fields)
        alert = re.search(r'role="alert">([^<]+)<', answer.text)
        assert alert is not None
        assert said in alert.group(1), alert.group(1)
        assert "two words" not in answer.text
        assert "hf_secret" not in answer.text
        assert_named(answer.text)


def test_bodies_that_are_no_forms_are_refused(reader: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    many = b"&".join(b"scope=jobs:read" for _ in range(65))
    for body, status in ((b"x" * 70_000, 413), (many, 400), (b"name=%ff", 400), (b"name=%00&scope=jobs:read", 400)):
        assert reader.post("/settings/keys", content=body, headers=form).status_code == status
    assert reader.post("/settings/keys", json={"name": "x"}).status_code == 415


def test_a_token_goes_in_and_never_comes_out(reader: TestClient, sessions: Sessions, settings: Settings) -> None:
    for token in ("hf_first", "hf_second"):
        answer = reader.post("/settings/credentials", data={"name": "hub main", "token": token})
        assert (answer.status_code, answer.headers["location"]) == (303, "/settings/credentials?did=stored")
    shown = reader.get("/settings/credentials").text
    assert "hub main" in shown
    assert "hf_" not in shown.replace('placeholder="hf_…"', "")
    with sessions() as session:
        assert credentials.token(session, settings.vault, "acme", "hub main") == "hf_second"
    assert reader.post("/settings/credentials/delete", data={"name": "hub main"}).status_code == 303
    assert reader.post("/settings/credentials/delete", data={"name": "hub main"}).status_code == 404


def test_the_life_of_an_endpoint(reader: TestClient, sessions: Sessions) -> None:
    once = _once(reader.get("/settings/webhooks").text)
    fields = {"url": "https://hooks.example/x", "event": ["job.failed", "gate.failed"], "once": once}
    made = reader.post("/settings/webhooks", data=fields)
    assert _secret(made.text) == _secret(reader.post("/settings/webhooks", data=fields).text)
    [at] = set(re.findall(r'href="(/settings/webhooks/whe_\w+)"', reader.get("/settings/webhooks").text))
    assert_named(reader.get(at).text)
    changed = reader.post(at, data={"url": "https://hooks.example/y", "event": ["job.queued"], "description": "prod"})
    assert changed.headers["location"] == f"{at}?did=changed"
    with sessions() as session:
        row = webhooks.get_endpoint(session, "acme", at.rpartition("/")[2])
        assert (row.url, row.events, row.description) == ("https://hooks.example/y", ["job.queued"], "prod")
    rotated = {"once": _once(reader.get(at).text)}
    second = _secret(reader.post(f"{at}/rotate_secret", data=rotated).text)
    assert second != _secret(made.text)
    assert _secret(reader.post(f"{at}/rotate_secret", data=rotated).text) == second, "the old one still signs"
    assert second not in reader.get(at).text
    assert reader.post(f"{at}/disable").headers["location"] == f"{at}?did=disabled"
    refused = reader.post(f"{at}/test")
    assert (refused.status_code, "is disabled" in refused.text) == (409, True)
    assert reader.post(f"{at}/enable").status_code == 303
    assert reader.post(f"{at}/test").headers["location"] == f"{at}?did=tested"
    assert reader.post(f"{at}/delete").headers["location"] == "/settings/webhooks?did=removed"
    assert reader.get(at).status_code == 404


def test_messages_are_sent_again_one_by_one_or_by_period(
    reader: TestClient, sessions: Sessions, belongings: dict[str, str], message: str
) -> None:
    at = f"/settings/webhooks/{belongings['endpoint_id']}"

    def give_up() -> None:
        with sessions.begin() as session:
            session.execute(text("UPDATE webhook_messages SET status = 'failed'"))

    def pending() -> int:
        with sessions() as session:
            return webhook_messages.count(session, WebhookMessage.status == "pending", limit=10)

    give_up()
    assert reader.post(f"{at}/redeliver", data={"message": message}).headers["location"] == f"{at}?did=redelivered"
    assert pending() == 1
    give_up()
    period = {"since": "2020-01-01T00:00", "until": "2020-02-01T00:00", "status": ["failed"]}
    assert reader.post(f"{at}/replay", data=period).headers["location"] == f"{at}?did=nothing"
    period = {"since": "2020-01-01T00:00", "until": "", "status": ["failed", "delivered"]}
    assert reader.post(f"{at}/replay", data=period).headers["location"] == f"{at}?did=replayed"
    assert pending() == 1


def test_deliveries_can_be_narrowed_and_asked_for_alone(
    reader: TestClient, belongings: dict[str, str], sessions: Sessions, message: str
) -> None:
    at = f"/settings/webhooks/{belongings['endpoint_id']}"
    with sessions.begin() as session:
        session.execute(
            text(
                "INSERT INTO webhook_deliveries (message_id, attempt, endpoint_id, status_code, error, seconds)"
                " SELECT :message, n, :endpoint, NULL, :error, 0.1 FROM generate_series(1, 25) n"
            ),
            {"message": message, "endpoint": belongings["endpoint_id"], "error": ATTACK},
        )
    part = reader.get(at, headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert part.count("Redeliver") == 20
    assert_harmless(part)
    older = re.search(r'rel="next" href="([^"]+)"', part)
    assert older is not None
    assert reader.get(older.group(1).replace("&amp;", "&")).text.count("<tr id=") == 5
    assert "Nothing was sent that is delivered" in reader.get(f"{at}?state=delivered").text
    assert reader.get(f"{at}?state=").text.count("<tr id=") == 20
    for query in ("state=x", f"after=msg_{'0' * 26}.1", "after=%00"):
        assert reader.get(f"{at}?{query}").status_code == 400, query


def test_limits_usage_and_who_did_what(reader_of: Reader, sessions: Sessions, belongings: dict[str, str]) -> None:
    reader = reader_of()
    with sessions.begin() as session:
        projects.limit(session, "acme", max_unfinished=0, max_storage_bytes=10**12)
    shown = reader.get("/settings").text
    assert "At the limit" in shown
    assert "of 1 TB" in shown
    assert_named(shown)
    for name in ("alpha", "beta"):
        reader.post("/settings/credentials", data={"name": name, "token": "hf_x"})
    log = reader.get("/settings/audit").text
    assert re.findall(r"<code>(credential\.\w+)</code>", log) == ["credential.put"] * 2
    assert log.index("beta") < log.index("alpha")
    assert "credential.put" not in reader_of("other").get("/settings/audit").text
    assert reader.get("/settings/audit?after=0").status_code == 400
    assert "Nothing more" in reader.get("/settings/audit?after=1").text


def test_hostile_words_stay_words(reader: TestClient, sessions: Sessions, settings: Settings) -> None:
    reader.post("/settings/keys", data={"name": ATTACK[:100], "scope": "jobs:read"})
    with sessions.begin() as session:
        credentials.put(session, settings.vault, "acme", ATTACK, "hf_x")
        row, _ = webhooks.create_endpoint(
            session, settings.vault, "acme", "javascript:alert(1)", ["job.failed"], ATTACK
        )
    for address in (*PAGES, f"/settings/webhooks/{row.id}", f"/settings/keys?did={ATTACK}"):
        answer = reader.get(address)
        assert answer.status_code == 200, address
        assert_harmless(answer.text)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
