"""A receiver of webhooks, as a web framework would call it."""

from collections.abc import Mapping

import lathe


def receive(client: lathe.Client, body: bytes, headers: Mapping[str, str], secret: str) -> tuple[int, str]:
    """Status and what happened."""
    try:
        message: lathe.WebhookPayload = client.webhooks.unwrap(body, headers, secret=secret)
    except lathe.WebhookVerificationError as error:
        return 400, error.message
    return 204, message.type
