"""Deliveries to real servers: tried again as the standard says, signed by every secret that holds, given up in the end,
never to where they must not go."""

import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook, webhooks
from standardwebhooks.webhooks import WebhookVerificationError
from worker_service import OWNER, SECRET_KEY, Service

from api import lifecycle
from api.store import webhook_messages
from api.store import webhooks as receivers
from api.store.models import WebhookMessage
from api.store.workers import Capacity
from optcore.errors import Failure
from optcore.events import RunPlanned, StageFinished
from worker.capacity import capacity
from worker.context import Context
from worker.fitness import Fitness
from worker.reconciler import Reconciler
from worker.settings import WorkerSettings
from worker.webhooks import deliver

pytestmark = pytest.mark.integration
CAPACITY: Capacity = capacity(())


@pytest.fixture
def context(service: Service) -> Context:
    return _context(service, allow="127.0.0.1")


def _context(service: Service, allow: str, **more: Any) -> Context:
    settings = WorkerSettings(
        database_url=service.database_url,
        data_dir=service.data_dir,
        secret_key=SECRET_KEY,
        allow_private_webhooks=allow,
        **{"webhook_timeout_seconds": 5, **more},
    )
    return Context(settings, service.sessions, "worker", CAPACITY, (), Fitness(settings, ()))


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
    assert 890 < _retry_seconds(service, message_id) <= 1080


@pytest.mark.parametrize("status", [429, 502, 504])
def test_an_overloaded_receiver_gets_nothing_for_a_while(
    service: Service, receiver: Any, context: Context, status: int
) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(status, {"Retry-After": "100"}), (204, {})]
    first, second = _message(service), _message(service)
    deliver(first, context)
    deliver(second, context)
    assert len(receiver.requests) == 1, "the second message waits, whoever it is that cannot keep up"
    assert _state(service, second) == ("pending", 0, []), "waiting costs no attempt"
    assert 90 < _retry_seconds(service, second) <= 120
    service.rows("UPDATE webhook_endpoints SET held_until = now() - interval '1 second'")
    _come_due(service)
    deliver(second, context)
    assert _state(service, second) == ("delivered", 1, [204])


def test_a_message_that_was_held_back_for_days_is_sent_all_the_same(
    service: Service, receiver: Any, context: Context
) -> None:
    """Else a receiver that is always overloaded would collect messages for ever."""
    service.add_receiver(receiver.url)
    message_id = _message(service)
    service.rows("UPDATE webhook_endpoints SET held_until = now() + interval '1 hour'")
    service.rows("UPDATE webhook_messages SET asked_at = now() - interval '6 days'")
    deliver(message_id, context)
    assert _state(service, message_id) == ("delivered", 1, [204])


def test_a_receiver_that_answers_too_late_is_tried_again_and_paused(service: Service, receiver: Any) -> None:
    service.add_receiver(receiver.url)
    receiver.pause_seconds = 1
    message_id = _message(service)
    deliver(message_id, _context(service, "127.0.0.1", webhook_timeout_seconds=0.3))
    assert _state(service, message_id) == ("pending", 1, [None])
    assert service.rows("SELECT error FROM webhook_deliveries") == [("no complete answer within 0.3 s",)]
    assert service.rows("SELECT 1 FROM webhook_endpoints WHERE held_until > now() + interval '50 seconds'")


def test_gone_ends_the_endpoint_at_once(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(410, {})]
    message_id = _message(service)
    deliver(message_id, context)
    assert _state(service, message_id) == ("failed", 1, [410])
    assert _disabled(service) == "gone"
    before = len(service.rows("SELECT 1 FROM webhook_messages"))
    service.cancel(service.submit())
    assert len(service.rows("SELECT 1 FROM webhook_messages")) == before


def _fail_to_the_end(service: Service, context: Context) -> str:
    """A message that is tried as often as there are delays; its id."""
    message_id = _message(service)
    for _ in range(12):
        deliver(message_id, context)
        _come_due(service)
    assert _state(service, message_id) == ("failed", 10, [500] * 10)
    return message_id


def _disabled(service: Service) -> str | None:
    [(at, reason)] = service.rows("SELECT disabled_at, disabled_reason FROM webhook_endpoints")
    assert (at is None) == (reason is None)
    return reason  # type: ignore[no-any-return]


def test_messages_in_a_row_that_are_given_up_disable_a_receiver_and_one_does_not(
    service: Service, receiver: Any, context: Context
) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(500, {})]
    _fail_to_the_end(service, context)
    _fail_to_the_end(service, context)
    assert _disabled(service) is None
    receiver.answers = [(204, {})]
    deliver(_message(service), context)
    receiver.answers = [(500, {})]
    for _ in range(2):
        _fail_to_the_end(service, context)
    assert _disabled(service) is None, "the success between them began the count anew"
    waiting = _message(service)
    _fail_to_the_end(service, context)
    assert _disabled(service) == "undelivered"
    deliver(waiting, context)
    assert _state(service, waiting) == ("failed", 0, []), "what waits for a disabled receiver is given up unsent"
    assert len(receiver.requests) == 51


def test_a_message_that_is_asked_for_again_has_all_its_attempts_before_it(
    service: Service, receiver: Any, context: Context
) -> None:
    service.add_receiver(receiver.url)
    receiver.answers = [(500, {})]
    message_id = _fail_to_the_end(service, context)
    with service.sessions.begin() as session:
        assert webhook_messages.send_again(session, WebhookMessage.id == message_id) == [message_id]
    deliver(message_id, context)
    assert 3 < _retry_seconds(service, message_id) <= 6
    receiver.answers = [(204, {})]
    _come_due(service)
    deliver(message_id, context)
    assert _state(service, message_id) == ("delivered", 12, [*[500] * 11, 204])
    assert {headers["webhook-id"] for headers, _ in receiver.requests} == {message_id}


def test_a_failure_that_ends_late_does_not_undo_a_delivery(service: Service, receiver: Any, context: Context) -> None:
    service.add_receiver(receiver.url)
    message_id = _message(service)

    def deliver_once_more() -> None:
        receiver.meanwhile = list
        with service.sessions.begin() as session:
            webhook_messages.send_again(session, WebhookMessage.id == message_id)
        deliver(message_id, context)

    receiver.answers, receiver.meanwhile = [(410, {}), (204, {})], deliver_once_more
    deliver(message_id, context)
    assert _state(service, message_id) == ("delivered", 2, [410, 204])
    assert _disabled(service) is None


def test_a_receiver_that_is_removed_while_it_is_sent_to_is_no_error(
    service: Service, receiver: Any, context: Context
) -> None:
    service.add_receiver(receiver.url)
    message_id = _message(service)
    receiver.meanwhile = lambda: service.rows("DELETE FROM webhook_endpoints")
    deliver(message_id, context)
    assert len(receiver.requests) == 1
    assert service.rows("SELECT 1 FROM webhook_deliveries") == []


def test_after_a_rotation_both_secrets_verify_and_then_the_new_one_alone(
    service: Service, receiver: Any, context: Context
) -> None:
    old = service.add_receiver(receiver.url)
    [(endpoint_id,)] = service.rows("SELECT id FROM webhook_endpoints")
    with service.sessions.begin() as session:
        endpoint = receivers.get_endpoint(session, OWNER, endpoint_id, lock=True)
        _, new = receivers.rotate_secret(session, service.vault, endpoint, overlap_seconds=3600)
    deliver(_message(service), context)
    headers, body = receiver.requests[0]
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers)["type"] == "job.cancelled"
    service.rows("UPDATE webhook_endpoints SET previous_secret_until = now() - interval '1 second'")
    deliver(_message(service), context)
    headers, body = receiver.requests[1]
    assert Webhook(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body, headers)


def test_a_receiver_whose_clock_is_wrong_refuses_until_it_is_right(
    service: Service, receiver: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each attempt is signed anew, by the database's clock."""
    secret = service.add_receiver(receiver.url)
    verdicts = []

    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(minutes=6)

    def verify() -> None:
        headers, body = receiver.requests[-1]
        try:
            verdicts.append(Webhook(secret).verify(body, headers)["type"])
        except WebhookVerificationError as error:
            verdicts.append(str(error))

    receiver.meanwhile, receiver.answers = verify, [(400, {}), (204, {})]
    message_id = _message(service)
    with monkeypatch.context() as wrong:
        wrong.setattr(webhooks, "datetime", WrongClock)
        deliver(message_id, context)
    _come_due(service)
    deliver(message_id, context)
    assert verdicts == ["Message timestamp too new", "job.cancelled"]
    sent = [int(headers["webhook-timestamp"]) for headers, _ in receiver.requests]
    assert all(abs(at - datetime.now(UTC).timestamp()) < 60 for at in sent)


def test_messages_arrive_in_any_order_and_their_sequence_tells_the_right_one(
    service: Service, receiver: Any, context: Context
) -> None:
    wanted = ["job.queued", "job.running", "stage.succeeded", "stage.failed", "gate.failed", "job.failed"]
    with service.sessions.begin() as session:
        _, secret = receivers.create_endpoint(session, service.vault, OWNER, receiver.url, wanted)
    job_id = service.submit()
    with service.sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "worker")
        assert claim is not None
    fetched = StageFinished(stage="0-fetch", key="k", cached=False, seconds=1, peak_memory_bytes=1)
    missed = Failure(kind="quality_gate", code="gate_failed", message="too far off", stage="1-ptq")
    with service.sessions.begin() as session:
        lifecycle.record(session, claim, [RunPlanned(stages=("0-fetch", "1-ptq")), fetched])
    with service.sessions.begin() as session:
        lifecycle.fail(session, claim, missed)
    for (message_id,) in service.rows("SELECT id FROM webhook_messages ORDER BY id DESC"):
        deliver(message_id, context)
    payloads = [Webhook(secret).verify(body, headers) for headers, body in receiver.requests]
    assert [each["type"] for each in payloads] == [
        "job.failed",
        "stage.failed",
        "gate.failed",
        "stage.succeeded",
        "job.running",
        "job.queued",
    ]
    numbers = {event.seq: event.type for event in service.events(job_id)}
    told = sorted((each["data"]["sequence"], each["type"]) for each in payloads)
    assert [(numbers[number], type) for number, type in told] == [
        ("job.queued", "job.queued"),
        ("job.running", "job.running"),
        ("stage_finished", "stage.succeeded"),
        ("job.failed", "gate.failed"),
        ("job.failed", "job.failed"),
        ("job.failed", "stage.failed"),
    ]


def test_a_private_receiver_is_refused_and_its_address_is_not_told(
    service: Service, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was public when it was registered."""
    service.add_receiver(f"https://rebinding.example:{receiver.server_port}/")
    message_id = _message(service)
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "rebinding.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    deliver(message_id, _context(service, allow="false"))
    assert not receiver.requests
    assert _state(service, message_id) == ("pending", 1, [None])
    [(error,)] = service.rows("SELECT error FROM webhook_deliveries")
    assert "rebinding.example leads to an address that is not public" in error
    assert "127.0.0.1" not in error


def test_a_body_is_thin_whatever_failed_and_holds_no_secret(service: Service, receiver: Any, context: Context) -> None:
    secret = service.add_receiver(receiver.url)
    job_id = service.submit(name="\U0001f525" * 200)
    with service.sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "worker")
        assert claim is not None
        long = "\U0001f525" * 50_000
        lifecycle.fail(session, claim, Failure(kind="user_error", code="x", message=long, remedy=long, field=long))
    [(message_id,)] = service.rows("SELECT id FROM webhook_messages")
    deliver(message_id, context)
    [(_, body)] = receiver.requests
    assert len(body) < 20_000
    assert secret.encode() not in body
    assert set(json.loads(body)) == {"type", "timestamp", "data"}
    assert (json.loads(body)["data"]["failure"]["kind"], json.loads(body)["data"]["failure"]["code"]) == (
        "user_error",
        "x",
    )


def test_old_messages_and_secrets_are_forgotten_and_those_on_their_way_are_not(
    service: Service, receiver: Any, context: Context
) -> None:
    service.add_receiver(receiver.url)
    old, young, waiting = _message(service), _message(service), _message(service)
    for message_id in (old, young):
        deliver(message_id, context)
    service.rows("UPDATE webhook_messages SET created_at = now() - interval '31 days' WHERE id <> :id", id=young)
    service.rows(
        "UPDATE webhook_endpoints SET previous_sealed_secret = 'x', previous_secret_until = now() - interval '1 hour'"
    )
    Reconciler(context.settings, service.sessions).tick()
    left = {row[0] for row in service.rows("SELECT id FROM webhook_messages")}
    assert left == {young, waiting}
    assert service.rows("SELECT message_id FROM webhook_deliveries") == [(young,)]
    assert service.rows("SELECT previous_sealed_secret FROM webhook_endpoints") == [(None,)]
