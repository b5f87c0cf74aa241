"""Deliveries: tried again as the standard says, given up when the receiver is gone, never to where they must not go."""

import json
from typing import Any

import pytest
from standardwebhooks import Webhook
from worker_service import SECRET_KEY, Service

from worker.context import Context
from worker.settings import WorkerSettings
from worker.webhooks import deliver

pytestmark = pytest.mark.integration


@pytest.fixture
def context(service: Service) -> Context:
    return _context(service, allow="127.0.0.1")


def _context(service: Service, allow: str) -> Context:
    settings = WorkerSettings(
        database_url=service.database_url,
        data_dir=service.data_dir,
        secret_key=SECRET_KEY,
        allow_private_webhooks=allow,
        webhook_timeout_seconds=5,
    )
    return Context(settings, service.sessions, "worker", "host")


def _message(service: Service) -> str:
    """A message of a cancelled job; its id."""
    service.cancel(service.submit())
    return str(service.rows("SELECT id FROM webhook_messages ORDER BY id DESC")[0][0])


def _come_due(service: Service) -> None:
    service.rows("UPDATE webhook_messages SET wake_at = now()")


def _state(service: Service, message_id: str) -> tuple[str, int, list[int | None]]:
    [(status, attempts)] = service.rows("SELECT status, attempts FROM webhook_messages WHERE id = :id", id=message_id)
    codes = service.rows(
        "SELECT status_code FROM webhook_deliveries WHERE message_id = :id ORDER BY attempt", id=message_id
    )
    return status, attempts, [code for (code,) in codes]


def _retry_seconds(service: Service, message_id: str) -> float:
    """How far in the future the message is announced again."""
    [(seconds,)] = service.rows(
        "SELECT extract(epoch FROM available_at - now()) FROM outbox "
        "WHERE payload->>'message_id' = :id ORDER BY id DESC LIMIT 1",
        id=message_id,
    )
    return float(seconds)


def test_a_failing_receiver_is_tried_again_with_the_same_id(service: Service, receiver: Any, context: Context) -> None:
    secret = service.add_receiver(receiver.url)
    receiver.answers = [(500, {}), (302, {"Location": receiver.url}), (200, {})]
    message_id = _message(service)
    deliver(message_id, context)
    assert 3 < _retry_seconds(service, message_id) <= 6
    _come_due(service)
    deliver(message_id, context)
    assert 290 < _retry_seconds(service, message_id) <= 360
    _come_due(service)
    deliver(message_id, context)
    _come_due(service)
    deliver(message_id, context)
    assert _state(service, message_id) == ("delivered", 3, [500, 302, 200])
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [message_id] * 3
    for headers, body in receiver.requests:
        assert Webhook(secret).verify(body, headers)["type"] == "job.cancelled"


def test_a_doubled_announcement_sends_once(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(500, {}), (204, {})]
    message_id = _message(service)
    for _ in range(5):
        deliver(message_id, context)
    assert _state(service, message_id) == ("pending", 1, [500])
    assert len(receiver.requests) == 1


def test_retry_after_is_honoured(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(503, {"Retry-After": "900"})]
    message_id = _message(service)
    deliver(message_id, context)
    assert 880 < _retry_seconds(service, message_id) <= 900


def test_gone_ends_the_endpoint(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(410, {})]
    message_id = _message(service)
    deliver(message_id, context)
    assert _state(service, message_id) == ("failed", 1, [410])
    assert service.rows("SELECT 1 FROM webhook_endpoints WHERE disabled_at IS NOT NULL")
    before = len(service.rows("SELECT 1 FROM webhook_messages"))
    service.cancel(service.submit())
    assert len(service.rows("SELECT 1 FROM webhook_messages")) == before


def test_a_receiver_that_never_answers_well_is_given_up(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(500, {})]
    message_id = _message(service)
    for _ in range(12):
        deliver(message_id, context)
        _come_due(service)
    assert _state(service, message_id) == ("failed", 10, [500] * 10)
    assert len(receiver.requests) == 10
    assert service.rows("SELECT 1 FROM webhook_endpoints WHERE disabled_at IS NOT NULL")


def test_a_private_receiver_is_refused_and_told_so(service: Service, receiver: Any) -> None:
    service.add_receiver(receiver.url.replace("http:", "https:"))
    message_id = _message(service)
    deliver(message_id, _context(service, allow="false"))
    assert not receiver.requests
    assert _state(service, message_id) == ("pending", 1, [None])
    [(error,)] = service.rows("SELECT error FROM webhook_deliveries")
    assert "127.0.0.1, which is not a public address" in error


def test_a_body_is_thin_and_holds_no_secret(service: Service, receiver: Any, context: Context) -> None:
    secret = service.add_receiver(receiver.url)
    deliver(_message(service), context)
    [(_, body)] = receiver.requests
    assert len(body) < 20_000
    assert secret.encode() not in body
    assert set(json.loads(body)) == {"type", "timestamp", "data"}
