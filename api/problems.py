"""RFC 9457 problem documents: the one form of every error answer, whoever raised it."""

from collections.abc import Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.errors import BadRequest, DatabaseAway, ServiceError
from lathe.models import Problem, ProblemError
from optcore.errors import OptError
from optcore.recipe import pointer

MEDIA_TYPE = "application/problem+json"
MAX_reasons = 100
"""A small body can be wrong in many places, and the answer should not be larger."""


def install(app: FastAPI) -> None:
    """Turn every exception that a route can raise into a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(OptError, _engine_error)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(PoolTimeout, _database_away)


def answer(request: Request, error: ServiceError, errors: Sequence[ProblemError] = ()) -> Response:
    """The problem of a service error."""
    if not errors and error.field:
        errors = [ProblemError(pointer=error.field, reason=error.message)]
    problem = Problem(
        type=_type(request, error.code),
        title=error.title,
        status=error.status,
        detail=error.message,
        code=error.code,
        remedy=error.remedy,
        errors=tuple(errors),
        request_id=request.scope.get("request_id", ""),
        retryable=error.retryable,
    )
    return _response(problem, error.headers)


def reasons(error: ValidationError) -> list[ProblemError]:
    """The places that a validation complains about, the first of them, without the union tags that pydantic inserts."""
    found = error.errors(include_url=False)[:MAX_reasons]
    return [ProblemError(pointer=pointer(item["loc"]), reason=item["msg"]) for item in found]


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    cause = error.__cause__
    return answer(request, error, reasons(cause) if isinstance(cause, ValidationError) else ())


async def _engine_error(request: Request, error: Exception) -> Response:
    """The engine's own words: REST, SDK and command line say the same."""
    assert isinstance(error, OptError)
    cause = error.__cause__
    errors = reasons(cause) if isinstance(cause, ValidationError) else []
    if not errors and error.field:
        errors = [ProblemError(pointer=error.field, reason=error.message)]
    problem = Problem(
        type=_type(request, error.code),
        title=(type(error).__doc__ or "").partition(".")[0].partition("\n")[0],
        status=422 if error.kind == "user_error" else 500,
        detail=error.message,
        code=error.code,
        remedy=error.remedy,
        errors=tuple(errors),
        request_id=request.scope.get("request_id", ""),
        retryable=error.retryable,
    )
    return _response(problem)


async def _bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, name = first["loc"][0], first["loc"][-1]
    message = f"{where} parameter {name}: {first['msg']}"
    return answer(request, BadRequest(message, remedy="see /openapi.json for what it may be"))


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework itself raises: no such address, or no such method there."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(status, f"http_{status.value}")
    remedy = {404: "check the address; /openapi.json lists them", 405: "use a method of the Allow header"}.get(
        status, ""
    )
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    raised = ServiceError(f"{request.method} {request.url.path}: {error.detail}", remedy=remedy)
    raised.status, raised.code, raised.title, raised.headers = status.value, code, status.phrase, headers
    return answer(request, raised)


async def _database_away(request: Request, error: Exception) -> Response:
    return answer(request, DatabaseAway())


def _allowed(request: Request) -> list[str]:
    """Methods of every route at the address; the framework names those of the first one only."""
    found: set[str] = set()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return sorted(found)


def _type(request: Request, code: str) -> str:
    return f"{request.base_url}problems/{code}"


def _response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(problem.model_dump_json(), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)
