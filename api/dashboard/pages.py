"""How a page is answered: templates, headers that keep foreign code out, and errors as pages."""

from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined

from api.dashboard import frame
from api.dashboard.words import FILTERS
from api.errors import BadRequest, ServiceError, Unauthorized
from optcore.errors import OptError

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # With `no-referrer` a browser would send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route for people: what goes wrong becomes a page, and who is not signed in is sent to sign in."""

    def get_route_handler(self) -> Handler:
        """The framework's handler, with our words for its errors."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            frame.enter(request)
            try:
                return await handle(request)
            except Unauthorized:
                return _to_sign_in(request)
            except RequestValidationError:
                return _problem(request, BadRequest("the address cannot be read", remedy="go to the list of jobs"))
            except (ServiceError, OptError) as error:
                return _problem(request, error)

        return answer


def is_partial(request: Request) -> bool:
    """Whether a script of a page asks for a part of it."""
    return request.headers.get("hx-request") == "true"


def render(template: str, **values: Any) -> str:
    """A template as text; every value in it is escaped."""
    return _environment().get_template(template).render(values, frame=frame.present())


def page(template: str, *, status: int = 200, **values: Any) -> Response:
    """A template as an answer."""
    return HTMLResponse(render(template, **values), status_code=status, headers=HEADERS)


def _to_sign_in(request: Request) -> Response:
    if is_partial(request):
        return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
    back = frame.with_query(request) if request.method == "GET" else "/"
    return RedirectResponse(f"/sign-in?next={quote(back)}", status_code=303)


def _problem(request: Request, error: ServiceError | OptError) -> Response:
    status = error.status if isinstance(error, ServiceError) else 422
    title = error.title if isinstance(error, ServiceError) else error.code.replace("_", " ").capitalize()
    if is_partial(request):
        made = page("job_notice.html", status=status, refused=error)
    else:
        asked = request.scope.get("request_id", "")
        made = page("error.html", status=status, title=title, error=error, request_id=asked)
    if isinstance(error, ServiceError):
        made.headers.update(error.headers)
    return made


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
