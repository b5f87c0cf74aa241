"""`lathe webhook`: what is sent for each command, and what is printed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scripted_server import Script, page, scripted, status
from typer.testing import CliRunner

from lathe.cli import app, output

PLACE = "/v1/webhook_endpoints/whe_1"
ENDPOINT: dict[str, Any] = {
    "id": "whe_1",
    "url": "https://hooks.example/",
    "events": ["job.failed"],
    "created_at": "2026-01-01T00:00:00Z",
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "endpoint_id": "whe_1",
    "job_id": None,
    "type": "webhook.test",
    "status": "pending",
    "attempts": 0,
    "payload": {},
    "created_at": "2026-01-01T00:00:00Z",
}
DELIVERY: dict[str, Any] = {
    "message_id": "msg_1",
    "message_status": "pending",
    "type": "webhook.test",
    "job_id": None,
    "attempt": 1,
    "status_code": None,
    "error": "no complete answer within 20 s",
    "seconds": 20.01,
    "at": "2026-01-01T00:00:00Z",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted() as script:
        monkeypatch.setenv("LATHE_URL", script.url)
        monkeypatch.setenv("LATHE_API_KEY", "lk_x")
        monkeypatch.setattr(output.console, "_width", 200)  # made once, with the width of whoever imported it first
        yield script


def webhook(*words: str) -> Any:
    done = CliRunner().invoke(app, ["webhook", *words])
    assert done.exit_code == 0, done.output
    return done


def _body(server: Script) -> Any:
    return json.loads(server.requests[-1][3])


def test_a_secret_is_printed_when_it_is_made_and_when_it_is_rotated(server: Script) -> None:
    server.on("POST /v1/webhook_endpoints", status(201, {**ENDPOINT, "secret": "whsec_a"}))
    server.on(f"POST {PLACE}/rotate_secret", status(200, {**ENDPOINT, "secret": "whsec_b"}))
    made = webhook("create", "https://hooks.example/", "--event", "job.failed", "--description", "nightly")
    assert made.stdout == "whe_1\nwhsec_a\n"
    assert _body(server) == {"url": "https://hooks.example/", "events": ["job.failed"], "description": "nightly"}
    assert webhook("rotate", "whe_1").stdout == "whe_1\nwhsec_b\n"
    assert all(headers["idempotency-key"] for _, _, headers, _ in server.requests)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "enabled"),
        ({"enabled": False, "disabled_reason": "owner"}, "disabled by you"),
        ({"enabled": False, "disabled_reason": "gone"}, "answered 410"),
        ({"enabled": False, "disabled_reason": "undelivered"}, "was given up"),
    ],
)
def test_the_list_says_why_nothing_is_sent(server: Script, state: dict[str, Any], words: str) -> None:
    server.on("GET /v1/webhook_endpoints", status(200, page({**ENDPOINT, **state})))
    assert words in webhook("ls").stdout


def test_only_what_is_named_is_changed(server: Script) -> None:
    server.on(f"PATCH {PLACE}", status(200, ENDPOINT))
    assert webhook("update", "whe_1", "--enable").stdout == "whe_1 enabled\n"
    assert {name: value for name, value in _body(server).items() if value is not None} == {"enabled": True}
    webhook("update", "whe_1", "--disable", "--url", "https://b.example/")
    named = {name: value for name, value in _body(server).items() if value is not None}
    assert named == {"enabled": False, "url": "https://b.example/"}


def test_a_receiver_is_tried_out_and_its_log_read(server: Script) -> None:
    server.on(f"POST {PLACE}/test", status(201, MESSAGE))
    server.on(f"GET {PLACE}/deliveries", status(200, page(DELIVERY, {**DELIVERY, "attempt": 2}, has_more=True)))
    assert webhook("test", "whe_1").stdout == "msg_1 pending\n"
    shown = webhook("deliveries", "whe_1", "--limit", "1").stdout
    assert "no complete answer within 20 s" in shown
    assert len(shown.strip().splitlines()) == 2
    printed = webhook("deliveries", "whe_1", "--limit", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["attempt"] for line in printed] == [1, 2]


def test_messages_are_sent_again_one_by_one_or_by_period(server: Script) -> None:
    server.on("POST /v1/webhook_messages/msg_1/redeliver", status(200, MESSAGE))
    server.on(f"POST {PLACE}/replay", status(200, {"messages": 7}))
    assert webhook("redeliver", "msg_1").stdout == "msg_1 pending\n"
    assert webhook("replay", "whe_1", "--since", "2026-01-02").stdout == "7 messages are sent again\n"
    assert _body(server) == {"since": "2026-01-02T00:00:00+00:00", "until": None, "statuses": ["failed"]}
    webhook("replay", "whe_1", "--since", "2026-01-02", "--until", "2026-01-03T12:00:00", "--delivered")
    assert _body(server)["until"] == "2026-01-03T12:00:00+00:00"
    assert _body(server)["statuses"] == ["failed", "delivered"]
