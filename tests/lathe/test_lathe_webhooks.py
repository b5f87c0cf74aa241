"""Receiving webhooks: made with the reference library, read with ours."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook

import lathe

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
BODY = json.dumps({"type": "job.succeeded", "timestamp": "2026-01-01T00:00:00Z", "data": {"id": "job_1"}}).encode()


def _headers(body: bytes = BODY, *, age: timedelta = timedelta(0), secret: str = SECRET) -> dict[str, str]:
    at = datetime.now(UTC) - age
    signature = Webhook(secret).sign("msg_1", at, body.decode())
    return {"Webhook-Id": "msg_1", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}


def test_a_signed_message_is_read() -> None:
    message = lathe.unwrap(BODY, _headers(), SECRET)
    assert (message.type, message.data) == ("job.succeeded", {"id": "job_1"})


def test_the_client_reads_it_too_with_a_secret_given_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with lathe.Client("http://127.0.0.1:9") as client:
        assert client.webhooks.unwrap(BODY, _headers(), secret=SECRET).type == "job.succeeded"
        with pytest.raises(lathe.WebhookVerificationError, match="no webhook secret"):
            client.webhooks.unwrap(BODY, _headers())
        monkeypatch.setenv("LATHE_WEBHOOK_SECRET", SECRET)
        client.webhooks.verify_signature(BODY, _headers())
    unwrapped = lathe.AsyncClient("http://127.0.0.1:9").webhooks.unwrap(BODY, _headers())
    assert unwrapped.data == {"id": "job_1"}


def test_one_right_signature_among_several_is_enough() -> None:
    headers = _headers()
    other = _headers(secret="whsec_" + base64.b64encode(b"o" * 32).decode())["webhook-signature"]
    headers["webhook-signature"] = f"v1a,xx {other} {headers['webhook-signature']}"
    lathe.verify_signature(BODY, headers, SECRET)


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (BODY + b" ", {}),
        (BODY.replace(b"job_1", b"job_2"), {}),
        (b"\xff\xfe", {}),
        (BODY, {"webhook-signature": ""}),
        (BODY, {"webhook-signature": "v1"}),
        (BODY, {"webhook-signature": "v1,!!!"}),
        (BODY, {"webhook-signature": "v1,\u00e9"}),
        (BODY, {"webhook-timestamp": "nan"}),
        (BODY, {"webhook-timestamp": "1e400"}),
        (BODY, {"Webhook-Id": "msg_2"}),
    ],
)
def test_anything_else_is_refused_with_the_one_error(body: bytes, changes: dict[str, str]) -> None:
    with pytest.raises(lathe.WebhookVerificationError):
        lathe.unwrap(body, _headers() | changes, SECRET)


def test_an_old_message_is_refused() -> None:
    lathe.verify_signature(BODY, _headers(age=timedelta(minutes=4)), SECRET)
    with pytest.raises(lathe.WebhookVerificationError, match="too old"):
        lathe.verify_signature(BODY, _headers(age=timedelta(minutes=6)), SECRET)
    with pytest.raises(lathe.WebhookVerificationError, match="too new"):
        lathe.verify_signature(BODY, _headers(age=timedelta(minutes=-6)), SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_\u00e9", "a"])
def test_a_useless_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(lathe.WebhookVerificationError, match="no webhook secret"):
        lathe.verify_signature(BODY, _headers(), secret)


def test_a_signed_message_of_an_unknown_kind_says_update() -> None:
    body = b'{"type": "job.levitated"}'
    with pytest.raises(lathe.WebhookVerificationError, match="does not know"):
        lathe.unwrap(body, _headers(body), SECRET)
