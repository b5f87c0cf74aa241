"""Signing in with an API key, and out again."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from api.dashboard import session
from api.dashboard.form import FieldsDep
from api.dashboard.pages import PageRoute, page
from api.dashboard.session import OURS, ViewerDep
from api.deps import KeyringDep, SettingsDep
from api.errors import Unauthorized

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_OWN_PAGE = re.compile(r"/(new|jobs/job_[0-9a-v]{26}(/(plots|logs|artifacts|recipe|deliveries))?)?")


@router.get("/sign-in")
def show_sign_in(request: Request, next: Annotated[str, Query(max_length=200)] = "/") -> Response:
    """The form. A link may bring the key behind `#`, which no browser sends; only one that the reader opened is used.

    Another site could else sign the reader in to somebody else's account.
    """
    trusted = request.headers.get("sec-fetch-site") in {"none", "same-origin"}
    return page("sign_in.html", next=_own(next), trusted=trusted, refused=None)


@router.get("/session")
def check_session(_viewer: ViewerDep) -> Response:
    """Whether the browser has a session: a link from elsewhere comes without the strict cookie."""
    return Response(status_code=204)


@router.post("/sign-in", dependencies=[OURS])
def sign_in(request: Request, settings: SettingsDep, keyring: KeyringDep, fields: FieldsDep) -> Response:
    """Exchange an API key for a session."""
    key, back = fields.get("key", "").strip(), _own(fields.get("next", "/"))
    try:
        keyring.caller(key)
    except Unauthorized as error:
        return page("sign_in.html", status=401, next=back, trusted=False, refused=error)
    answer = RedirectResponse(back, status_code=303)
    session.start(request, answer, settings, key)
    return answer


@router.post("/sign-out", dependencies=[OURS])
def sign_out(settings: SettingsDep) -> Response:
    """End the session of this browser."""
    answer = RedirectResponse("/sign-in", status_code=303)
    session.end(answer, settings)
    return answer


def _own(path: str) -> str:
    """A page of ours; never an address that somebody else chose."""
    return path if _OWN_PAGE.fullmatch(path) else "/"
