"""Receiving webhooks: check the signature (Standard Webhooks 1.0.0), then read the body."""

import os
from collections.abc import Mapping

from pydantic import ValidationError
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook
from standardwebhooks.webhooks import WebhookVerificationError as Refused

from lathe.errors import WebhookVerificationError
from lathe.webhook_models import WebhookPayload


def verify_signature(raw_body: bytes, headers: Mapping[str, str], secret: str) -> None:
    """Check that the service sent these exact bytes within the last five minutes.

    `raw_body` is the body before any parsing, `secret` the `whsec_...` that was shown when the endpoint was made.
    Raises `WebhookVerificationError`, whatever is wrong. Deliveries repeat: remember `webhook-id` to act only once.
    """
    try:
        receiver = Webhook(secret)
    except (EmptyWebhookSecretError, ValueError) as error:
        raise WebhookVerificationError(
            "this is no webhook secret", remedy="use the `whsec_...` that was shown when the endpoint was made"
        ) from error
    try:
        receiver.verify(raw_body, dict(headers), json_parse=False)
    except (Refused, ValueError) as error:  # ValueError: headers or bytes that are not even well formed
        raise WebhookVerificationError(
            f"the message is not signed by this endpoint's secret, or is too old: {error}",
            remedy="verify the raw bytes of the body, and keep this machine's clock right",
        ) from error


def unwrap(raw_body: bytes, headers: Mapping[str, str], secret: str) -> WebhookPayload:
    """The message, once its signature is checked. Raises `WebhookVerificationError`."""
    verify_signature(raw_body, headers, secret)
    try:
        return WebhookPayload.model_validate_json(raw_body)
    except ValidationError as error:
        raise WebhookVerificationError(
            "the message is signed, but is of a kind that this package does not know", remedy="update this package"
        ) from error


class Webhooks:
    """The same as `client.webhooks`: it asks the service nothing, and is no coroutine for either client."""

    def unwrap(self, raw_body: bytes, headers: Mapping[str, str], *, secret: str | None = None) -> WebhookPayload:
        """The message, once its signature is checked with `secret`, else with LATHE_WEBHOOK_SECRET."""
        return unwrap(raw_body, headers, _secret(secret))

    def verify_signature(self, raw_body: bytes, headers: Mapping[str, str], *, secret: str | None = None) -> None:
        """Check that the service sent these exact bytes. Raises `WebhookVerificationError`."""
        verify_signature(raw_body, headers, _secret(secret))


def _secret(given: str | None) -> str:
    return given or os.environ.get("LATHE_WEBHOOK_SECRET", "")
