"""One delivery of one webhook: sign, send, write down what came back."""

import logging
import time
from datetime import UTC

import structlog
from standardwebhooks import Webhook

from api import tracing
from api.store import webhook_deliveries
from api.store.webhook_deliveries import Outcome, Outgoing
from optcore.frozen import canonical_json
from worker.address_guard import AddressGuard
from worker.backoff import next_delay_seconds, pause_seconds, retry_after_seconds
from worker.context import Context
from worker.safe_http import Answer, SendError, TooSlow, post

log = logging.getLogger(__name__)

GONE = 410
LONGEST_error = 500


def deliver(message_id: str, context: Context) -> None:
    """Send the message if it is due. The attempt is counted before it is made, so a crash cannot repeat it for ever."""
    with context.sessions.begin() as session:
        outgoing = webhook_deliveries.begin(session, context.settings.vault, message_id)
    if outgoing is None:
        log.info("nothing to deliver for %s", message_id)
        return
    ids = {"message_id": message_id, "job_id": outgoing.job_id}
    with (
        structlog.contextvars.bound_contextvars(job_id=outgoing.job_id),
        tracing.span("webhook", parent=outgoing.traceparent, kind="client", attempt=outgoing.attempt, **ids),
    ):
        outcome = _attempt(outgoing, context)
        if not outcome.delivered:
            tracing.fail(str(outcome.status_code or outcome.error))
    log.info("%s attempt %d: %s", message_id, outgoing.attempt, outcome.status_code or outcome.error)
    with context.sessions.begin() as session:
        webhook_deliveries.end(session, outgoing, outcome, context.settings.webhook_dead_limit)


def signed(outgoing: Outgoing, body: str) -> dict[str, str]:
    """The three headers of Standard Webhooks 1.0 for this attempt, with a signature of each secret that holds."""
    # The library drops the zone of a time and takes what is left for UTC.
    moment = outgoing.at.astimezone(UTC).replace(microsecond=0)
    signatures = [Webhook(secret).sign(outgoing.message_id, moment, body) for secret in outgoing.secrets]
    return {
        "webhook-id": outgoing.message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _attempt(outgoing: Outgoing, context: Context) -> Outcome:
    started = time.monotonic()
    try:
        answer = _send(outgoing, context)
    except SendError as refusal:
        pause = pause_seconds(None, 0) if isinstance(refusal, TooSlow) else 0.0
        return Outcome(
            delivered=False,
            seconds=time.monotonic() - started,
            error=str(refusal)[:LONGEST_error],
            retry_in_seconds=next_delay_seconds(outgoing.tries, pause),
            hold_seconds=pause,
        )
    return _answered(outgoing, answer, time.monotonic() - started)


def _answered(outgoing: Outgoing, answer: Answer, seconds: float) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome(delivered=True, seconds=seconds, status_code=answer.status)
    asked = retry_after_seconds(answer.retry_after)
    pause = pause_seconds(answer.status, asked)
    gone = answer.status == GONE
    return Outcome(
        delivered=False,
        seconds=seconds,
        status_code=answer.status,
        retry_in_seconds=None if gone else next_delay_seconds(outgoing.tries, max(asked, pause)),
        hold_seconds=pause,
        gone=gone,
    )


def _send(outgoing: Outgoing, context: Context) -> Answer:
    body = canonical_json(outgoing.payload)
    headers = {"content-type": "application/json", "user-agent": "lathe-webhooks/1", **signed(outgoing, body)}
    guard = AddressGuard.allowing(context.settings.allow_private_webhooks)
    timeout_seconds = context.settings.webhook_timeout_seconds
    return post(outgoing.url, body.encode(), headers, guard=guard, timeout_seconds=timeout_seconds)
