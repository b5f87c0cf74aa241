"""Webhook receivers of a service and the messages to them, for the sync client."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from lathe._protocol import webhooks as protocol
from lathe._wire import Wire
from lathe.webhook_models import (
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEventType,
    WebhookMessage,
    WebhookMessageStatus,
    WebhookReplayed,
)


class WebhookEndpoints:
    """Receivers of signed messages."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self, url: str, *, events: Sequence[WebhookEventType] | None = None, description: str = ""
    ) -> WebhookEndpoint:
        """Add a receiver. The answer's `secret` is shown this once: `lathe.unwrap` needs it."""
        return self._wire.send(protocol.create_webhook_endpoint(url, events, description))

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """One receiver, and whether anything is sent there."""
        return self._wire.send(protocol.get_webhook_endpoint(endpoint_id))

    def list(self) -> Iterator[WebhookEndpoint]:
        """Your receivers, newest first, without their secrets."""
        return self._wire.each(protocol.list_webhook_endpoints, {})

    def update(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[WebhookEventType] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> WebhookEndpoint:
        """Change a receiver; what is not named stays. Enabling one forgets what had failed."""
        changes = {
            "url": url,
            "events": None if events is None else list(events),
            "description": description,
            "enabled": enabled,
        }
        return self._wire.send(protocol.update_webhook_endpoint(endpoint_id, changes))

    def delete(self, endpoint_id: str) -> None:
        """Remove a receiver; messages on their way to it are dropped."""
        self._wire.send(protocol.delete_webhook_endpoint(endpoint_id))

    def rotate_secret(self, endpoint_id: str) -> WebhookEndpoint:
        """A new `secret`, shown this once; the old one signs beside it until `previous_secret_until`."""
        return self._wire.send(protocol.rotate_webhook_secret(endpoint_id))

    def test(self, endpoint_id: str) -> WebhookMessage:
        """Send a message of type `webhook.test`."""
        return self._wire.send(protocol.send_test_webhook(endpoint_id))

    def deliveries(
        self, endpoint_id: str, *, status: WebhookMessageStatus | None = None, page_size: int = 20
    ) -> Iterator[WebhookDelivery]:
        """What was tried there, newest first; with `status`, only attempts at messages that are in that state now."""
        params = {"status": status, "limit": page_size}
        return self._wire.each(lambda page: protocol.list_webhook_deliveries(endpoint_id, page), params)

    def replay(
        self,
        endpoint_id: str,
        *,
        since: datetime,
        until: datetime | None = None,
        statuses: Sequence[WebhookMessageStatus] = ("failed",),
    ) -> WebhookReplayed:
        """Send the messages made from `since` on, before `until`, again; times carry their zone.

        Those that were given up, unless `statuses` names `delivered` too.
        """
        return self._wire.send(protocol.replay_webhook_messages(endpoint_id, since, until, statuses))


class WebhookMessages:
    """Messages to receivers; their ids are the `webhook-id` of every attempt."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(self, message_id: str) -> WebhookMessage:
        """What a message says, and whether it was delivered."""
        return self._wire.send(protocol.get_webhook_message(message_id))

    def redeliver(self, message_id: str) -> WebhookMessage:
        """Send a message again, now, whatever became of it."""
        return self._wire.send(protocol.redeliver_webhook_message(message_id))
