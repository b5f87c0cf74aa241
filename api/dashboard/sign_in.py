"""Signing in with an API key, and out again."""

import ipaddress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from api.dashboard import session
from api.dashboard.form import FieldsDep
from api.dashboard.frame import own_page
from api.dashboard.pages import PageRoute, page
from api.dashboard.session import OURS, ViewerDep
from api.deps import KeyringDep, SettingsDep
from api.errors import TooManyRequests, Unauthorized
from api.state import state_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/sign-in")
def show_sign_in(request: Request, next: Annotated[str, Query(max_length=600)] = "/") -> Response:
    """The form. A link may bring the key behind `#`, which no browser sends; only one that the reader opened is used.

    Another site could else sign the reader in to somebody else's account.
    """
    trusted = request.headers.get("sec-fetch-site") in {"none", "same-origin"}
    return page("sign_in.html", next=own_page(next), trusted=trusted, refused=None)


@router.get("/session")
def check_session(_viewer: ViewerDep) -> Response:
    """Whether the browser has a session: a link from elsewhere comes without the strict cookie."""
    return Response(status_code=204)


@router.post("/sign-in", dependencies=[OURS])
async def sign_in(request: Request, settings: SettingsDep, keyring: KeyringDep, fields: FieldsDep) -> Response:
    """Exchange an API key for a session. Who failed too often must wait before the next guess.

    A key that is right is never refused: its 256 bits cannot be guessed, and others may have failed from its network.
    """
    key, back = fields.get("key", "").strip(), own_page(fields.get("next", "/"))
    try:
        await run_in_threadpool(keyring.caller, key)
    except Unauthorized as unknown:
        error = await _failed(request, unknown)
        refused = page("sign_in.html", status=error.status, next=back, trusted=False, refused=error)
        refused.headers.update(error.headers)
        return refused
    answer = RedirectResponse(back, status_code=303)
    session.start(request, answer, settings, key)
    return answer


async def _failed(request: Request, unknown: Unauthorized) -> Unauthorized | TooManyRequests:
    """What to say to a key that is not known."""
    try:
        await state_of(request).failed_sign_ins.count(_network(request), "failed to sign in from your network")
    except TooManyRequests as error:
        error.remedy = f"Try again in {error.headers['Retry-After']} seconds"
        return error
    return unknown


@router.post("/sign-out", dependencies=[OURS])
def sign_out(request: Request, settings: SettingsDep) -> Response:
    """End the session of this browser."""
    answer = RedirectResponse("/sign-in", status_code=303)
    session.end(request, answer, settings)
    return answer


def _network(request: Request) -> str:
    """Where a request comes from; of version 6 the network, for whoever has one has all of its addresses."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
