"""What Prometheus scrapes. Not part of the API: no client needs it."""

import hmac
import re
from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.errors import Forbidden, Unauthorized
from api.state import state_of

router = APIRouter(include_in_schema=False)
_PROXIED = {"forwarded", "via", "x-real-ip"}
_PROXIED_PREFIXES = ("x-forwarded-", "cf-")


@router.get("/metrics")
def get_metrics(request: Request) -> Response:
    """All metrics, as text. Raises `Unauthorized` and `Forbidden`."""
    state = state_of(request)
    _admit(request, state.settings.metrics_token.get_secret_value())
    text = generate_latest(state.requests.registry) + generate_latest(state.service.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _admit(request: Request, token: str) -> None:
    """Who has the token; where none is set, this machine alone, and nobody through a proxy on it."""
    if token:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Unauthorized("metrics are read with a token", remedy="send LATHE_METRICS_TOKEN as a bearer token")
        return
    peer = request.client.host if request.client else ""
    if not _is_loopback(peer) or _is_proxied(request):
        raise Forbidden(
            "metrics are read from this machine, at 127.0.0.1", remedy="set LATHE_METRICS_TOKEN to read them elsewhere"
        )


def _is_proxied(request: Request) -> bool:
    """Whether somebody elsewhere may have asked, by what proxies add, and by the name that was asked for.

    HTTP/1.0 is what nginx speaks by default, which adds nothing, to the loopback address that it was told.
    """
    added = any(name in _PROXIED or name.startswith(_PROXIED_PREFIXES) for name in request.headers)
    host = re.sub(r":\d+$", "", request.headers.get("host", "")).strip("[]")
    return added or request.scope["http_version"] == "1.0" or not _is_loopback(host)


def _is_loopback(peer: str) -> bool:
    try:
        return ip_address(peer).is_loopback
    except ValueError:
        return False
