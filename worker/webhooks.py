"""One delivery of one webhook: sign, send, write down what came back."""

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from standardwebhooks import Webhook

from api.store import webhooks
from api.store.webhooks import Outgoing
from optcore.frozen import canonical_json
from worker.address_guard import AddressGuard
from worker.backoff import next_delay_seconds
from worker.context import Context
from worker.safe_http import Answer, SendError, post

log = logging.getLogger(__name__)

GONE = 410


@dataclass(frozen=True)
class _Result:
    answer: Answer | None
    error: str | None
    seconds: float

    @property
    def delivered(self) -> bool:
        return self.answer is not None and 200 <= self.answer.status < 300


def deliver(message_id: str, context: Context) -> None:
    """Send the message if it is due. The attempt is counted before it is made, so a crash cannot repeat it for ever."""
    with context.sessions.begin() as session:
        outgoing = webhooks.begin_delivery(session, context.settings.vault, message_id)
    if outgoing is None:
        log.info("nothing to deliver for %s", message_id)
        return
    _write_down(outgoing, _send(outgoing, context), context)


def signed(outgoing: Outgoing, body: str, now: datetime) -> dict[str, str]:
    """The three headers of Standard Webhooks 1.0 for this attempt; `now` in UTC."""
    # The library reads a naive time as UTC, and stamps the header's second itself only in its own sender.
    moment = now.astimezone(UTC).replace(microsecond=0)
    return {
        "webhook-id": outgoing.message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(outgoing.secret).sign(outgoing.message_id, moment, body),
    }


def _send(outgoing: Outgoing, context: Context) -> _Result:
    body = canonical_json(outgoing.payload)
    headers = {
        "content-type": "application/json",
        "user-agent": "lathe-webhooks/1",
        **signed(outgoing, body, datetime.now(UTC)),
    }
    settings = context.settings
    guard = AddressGuard.allowing(settings.allow_private_webhooks)
    started = time.monotonic()
    answer, error = None, None
    try:
        answer = post(
            outgoing.url, body.encode(), headers, guard=guard, timeout_seconds=settings.webhook_timeout_seconds
        )
    except SendError as refusal:
        error = str(refusal)[:500]
    return _Result(answer, error, time.monotonic() - started)


def _write_down(outgoing: Outgoing, result: _Result, context: Context) -> None:
    status = result.answer.status if result.answer else None
    retry_in = None
    if not result.delivered and status != GONE:
        retry_in = next_delay_seconds(outgoing.attempt, result.answer.retry_after if result.answer else None)
    log.info("%s attempt %d: %s", outgoing.message_id, outgoing.attempt, status or result.error)
    with context.sessions.begin() as session:
        webhooks.end_delivery(
            session,
            outgoing,
            delivered=result.delivered,
            seconds=result.seconds,
            status_code=status,
            error=result.error,
            retry_in_seconds=retry_in,
        )
        if not result.delivered and retry_in is None:
            webhooks.disable_endpoint(session, outgoing.endpoint_id)
