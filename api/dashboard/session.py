"""Who looks at the dashboard: a cookie that stands for an API key, sealed with LATHE_SECRET_KEY."""

import hashlib
import hmac
import time
from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from api.auth import Caller
from api.deps import KeyringDep, SettingsDep
from api.errors import ServiceError, Unauthorized, VaultError
from api.settings import Settings
from api.state import state_of

LIFETIME_seconds = 7 * 24 * 3600
_PLACE = "dashboard/session"


class CrossSite(ServiceError):
    """A change that another site asked for in the reader's name."""

    status = 403
    code = "cross_site"
    title = "Refused: the request came from another site"


def cookie_name(settings: Settings) -> str:
    """One for each service: a browser shares the cookies of a host among all of its ports.

    Made from the present key alone, so a change of the key ends all sessions: signing in again costs little.
    """
    return "lathe_" + hmac.digest(_secret(settings), b"dashboard/cookie", hashlib.sha256).hex()[:8]


def start(request: Request, response: Response, settings: Settings, key: str) -> None:
    """Give the browser a session. The key is tested at each request, so revoking it ends the session too."""
    sealed = settings.vault.seal(f"{int(time.time()) + LIFETIME_seconds} {key}", _PLACE)
    secure = request.url.scheme == "https"
    name = _name_for(request, settings)
    response.set_cookie(name, sealed, max_age=LIFETIME_seconds, httponly=True, samesite="strict", secure=secure)


def end(request: Request, response: Response, settings: Settings) -> None:
    """Have the browser forget the session."""
    secure = request.url.scheme == "https"
    response.delete_cookie(_name_for(request, settings), httponly=True, samesite="strict", secure=secure)


async def viewer(request: Request, settings: SettingsDep, keyring: KeyringDep) -> Caller:
    """Whose session the browser sent, with all that its API key allows. Raises `Unauthorized`.

    What a form asks for counts as a request with the key: raises `TooManyRequests`.
    """
    try:
        text = settings.vault.open(request.cookies.get(_name_for(request, settings), ""), _PLACE)
    except VaultError as error:
        raise Unauthorized("you are not signed in", remedy="sign in with an API key") from error
    expires, _, key = text.partition(" ")
    if time.time() > int(expires):
        raise Unauthorized("the session is over", remedy="sign in again")
    known = keyring.remembered(key)
    if known is None:
        known = await run_in_threadpool(keyring.caller, key)
    known.require("jobs:read")
    if request.method == "POST":
        await state_of(request).rate_limit.count(known.key_id)
    return known


async def counted(request: Request, viewer: Annotated[Caller, Depends(viewer)]) -> Caller:
    """A viewer who asks for a page that costs what the API's answer does: a request too. Raises `TooManyRequests`."""
    await state_of(request).rate_limit.count(viewer.key_id)
    return viewer


async def editor(viewer: Annotated[Caller, Depends(viewer)]) -> Caller:
    """A viewer whose key may change jobs. Raises `Forbidden`."""
    viewer.require("jobs:write")
    return viewer


def same_origin(request: Request) -> None:
    """Let a change through that our own pages asked for; beside the SameSite cookie. Raises `CrossSite`."""
    site = request.headers.get("sec-fetch-site")
    if site is None:  # an old browser, or plain HTTP from another machine
        host = request.headers.get("host", "")
        # Behind a proxy that ends TLS we see http. A page that came over http never speaks for one that came over TLS.
        ours = request.headers.get("origin") in {f"{request.url.scheme}://{host}", f"https://{host}"}
    else:
        ours = site == "same-origin"
    if not ours:
        raise CrossSite("this page can only be used from the dashboard itself", remedy="open it and try there")


def _name_for(request: Request, settings: Settings) -> str:
    """Over TLS with the prefix by which a browser takes it from this very host alone, not from one beside it."""
    name = cookie_name(settings)
    return f"__Host-{name}" if request.url.scheme == "https" else name


def _secret(settings: Settings) -> bytes:
    return settings.secret_key.get_secret_value().encode()


ViewerDep = Annotated[Caller, Depends(viewer)]
CountedDep = Annotated[Caller, Depends(counted)]
EditorDep = Annotated[Caller, Depends(editor)]
OURS = Depends(same_origin)
"""What each route that changes something depends on."""
