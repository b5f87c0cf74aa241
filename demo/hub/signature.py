"""Addresses that take one upload for a while, without a token: what the Hub gets from its object storage."""

import hashlib
import hmac
import secrets
import time
from urllib.parse import urlsplit

from fastapi import Request

from demo.hub.refusal import Refusal

VALID_seconds = 3600


class Signer:
    """Signs addresses with a key that lives as long as the process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, url: str) -> str:
        """The address with its expiry and signature."""
        expires = int(time.time()) + VALID_seconds
        return f"{url}?expires={expires}&signature={self._signature(urlsplit(url).path, expires)}"

    def check(self, request: Request) -> None:
        """Refuse a request whose address was not made by us, or long ago."""
        query = request.query_params
        expires = int(query["expires"]) if query.get("expires", "").isdecimal() else 0
        right = self._signature(request.url.path, expires)
        if expires < time.time() or not hmac.compare_digest(right, query.get("signature", "")):
            raise Refusal(403, "this address has expired or was never valid")

    def _signature(self, path: str, expires: int) -> str:
        return hmac.new(self._key, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()
