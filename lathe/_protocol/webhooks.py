"""What is asked about receivers of signed messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lathe._protocol.call import Call, Params, idempotency, nothing, reader, segment
from lathe.models import Page
from lathe.webhook_models import WebhookDelivery, WebhookEndpoint, WebhookMessage, WebhookReplayed

_endpoint = reader(WebhookEndpoint)
_endpoints = reader(Page[WebhookEndpoint])
_message = reader(WebhookMessage)
_deliveries = reader(Page[WebhookDelivery])
_replayed = reader(WebhookReplayed)


def create_webhook_endpoint(url: str, events: Sequence[str] | None, description: str = "") -> Call[WebhookEndpoint]:
    body: dict[str, Any] = {"url": url, "description": description}
    if events is not None:
        body["events"] = list(events)
    return Call("POST", "/v1/webhook_endpoints", _endpoint, body=body, headers=idempotency())


def get_webhook_endpoint(endpoint_id: str) -> Call[WebhookEndpoint]:
    return Call("GET", _receiver(endpoint_id), _endpoint)


def list_webhook_endpoints(params: Params) -> Call[Page[WebhookEndpoint]]:
    return Call("GET", "/v1/webhook_endpoints", _endpoints, params)


def delete_webhook_endpoint(endpoint_id: str) -> Call[None]:
    return Call("DELETE", _receiver(endpoint_id), nothing)


def update_webhook_endpoint(endpoint_id: str, changes: Mapping[str, Any]) -> Call[WebhookEndpoint]:
    """Null stands for what stays as it is."""
    return Call("PATCH", _receiver(endpoint_id), _endpoint, body=dict(changes))


def rotate_webhook_secret(endpoint_id: str) -> Call[WebhookEndpoint]:
    return Call("POST", f"{_receiver(endpoint_id)}/rotate_secret", _endpoint, headers=idempotency())


def send_test_webhook(endpoint_id: str) -> Call[WebhookMessage]:
    return Call("POST", f"{_receiver(endpoint_id)}/test", _message, headers=idempotency())


def list_webhook_deliveries(endpoint_id: str, params: Params) -> Call[Page[WebhookDelivery]]:
    return Call("GET", f"{_receiver(endpoint_id)}/deliveries", _deliveries, params)


def replay_webhook_messages(
    endpoint_id: str, since: datetime, until: datetime | None, statuses: Sequence[str]
) -> Call[WebhookReplayed]:
    body = {"since": since.isoformat(), "until": until and until.isoformat(), "statuses": list(statuses)}
    return Call("POST", f"{_receiver(endpoint_id)}/replay", _replayed, body=body, headers=idempotency())


def get_webhook_message(message_id: str) -> Call[WebhookMessage]:
    return Call("GET", f"/v1/webhook_messages/{segment(message_id)}", _message)


def redeliver_webhook_message(message_id: str) -> Call[WebhookMessage]:
    return Call("POST", f"/v1/webhook_messages/{segment(message_id)}/redeliver", _message, headers=idempotency())


def _receiver(endpoint_id: str) -> str:
    return f"/v1/webhook_endpoints/{segment(endpoint_id)}"
