"""What Prometheus scrapes. Not part of the API: no client needs it."""

import hmac
from ipaddress import ip_address

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.errors import Forbidden, Unauthorized
from api.state import state_of

router = APIRouter(include_in_schema=False)
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


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
    if any(name in request.headers for name in _FORWARDED) or not _is_loopback(peer):
        raise Forbidden("metrics are read from this machine", remedy="set LATHE_METRICS_TOKEN to read them elsewhere")


def _is_loopback(peer: str) -> bool:
    try:
        return ip_address(peer).is_loopback
    except ValueError:
        return False
