"""The reader's choice of light or dark: a cookie, so that the first paint has the right colours already."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from api.dashboard.form import FieldsDep
from api.dashboard.frame import THEME_COOKIE, THEMES, own_page
from api.dashboard.pages import PageRoute, is_partial
from api.dashboard.session import OURS
from api.errors import BadRequest

router = APIRouter(route_class=PageRoute, include_in_schema=False)

KEPT_seconds = 365 * 24 * 3600


@router.post("/theme", dependencies=[OURS])
def choose_theme(request: Request, fields: FieldsDep) -> Response:
    """Remember it in this browser, and go back to where the reader was."""
    theme = fields.get("theme", "")
    if theme not in THEMES:
        raise BadRequest("no such theme", remedy=f"choose one of {', '.join(THEMES)}")
    back = RedirectResponse(own_page(fields.get("back", "/")), status_code=303)
    answer = Response(status_code=204) if is_partial(request) else back
    secure = request.url.scheme == "https"
    answer.set_cookie(THEME_COOKIE, theme, max_age=KEPT_seconds, httponly=True, samesite="lax", secure=secure)
    return answer
