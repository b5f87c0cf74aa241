"""Where the service is and who we are: arguments, then the environment, then the default."""

import ipaddress
import os
import platform
from typing import Any

import httpx

from lathe.errors import LatheError

DEFAULT_URL = "http://127.0.0.1:8321"
CONNECT_seconds = 10.0
SILENCE_seconds = 60.0
"""A stream that is silent for so long is lost: the service says something every 15 seconds."""


def connection(base_url: str | None, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Keyword arguments of an `httpx` client. Raises `LatheError` for an unusable address or key."""
    url = _url(base_url or os.environ.get("LATHE_URL") or DEFAULT_URL)
    headers = {"User-Agent": f"lathe-python ({platform.python_version()})", "Accept": "application/json"}
    if key := (api_key or os.environ.get("LATHE_API_KEY", "")).strip():
        headers["Authorization"] = f"Bearer {_ascii(key)}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": request_timeout(timeout_seconds),
        # A redirect would carry the key to an address that nobody configured.
        "follow_redirects": False,
        # A proxy of the environment cannot reach this machine's own loopback.
        "trust_env": not _is_loopback(url.host),
    }


def request_timeout(timeout_seconds: float) -> httpx.Timeout:
    """For answers that come whole."""
    return httpx.Timeout(timeout_seconds, connect=min(CONNECT_seconds, timeout_seconds))


def stream_timeout(timeout_seconds: float) -> httpx.Timeout:
    """For answers that go on: the read limit is for silence, not for the whole."""
    return httpx.Timeout(timeout_seconds, connect=min(CONNECT_seconds, timeout_seconds), read=SILENCE_seconds)


def _url(text: str) -> httpx.URL:
    remedy = "set LATHE_URL to something like http://127.0.0.1:8321"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise LatheError(f"not an address: {text!r} ({error})", remedy=remedy) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise LatheError(f"not an http address: {text!r}", remedy=remedy)
    return url


def _ascii(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise LatheError("the API key has characters that no key has", remedy="set LATHE_API_KEY to the key, `lk_...`")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
