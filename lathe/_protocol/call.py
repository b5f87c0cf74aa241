"""One request of the REST protocol without I/O, and what its answer stands for."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from lathe.errors import APIError, BadResponse, ConnectionFailed, api_error
from lathe.models import Problem

T = TypeVar("T")
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and the reader of its answer.

    Every call may be sent again: a POST that changes something carries an Idempotency-Key, and what a DELETE no longer
    finds, an earlier attempt of it has deleted.
    """

    method: str
    path: str
    parse: Callable[[bytes], T]
    params: Params = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `httpx.Client.build_request`."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "method": self.method,
            "url": self.path,
            "params": params,
            "json": self.body,
            "headers": dict(self.headers),
        }


def conclude(call: Call[T], response: httpx.Response, attempt: int = 0) -> T:
    """The value that a complete answer to an attempt (from 0) stands for; raises `APIError` or `BadResponse`."""
    if attempt and call.method == "DELETE" and response.status_code == httpx.codes.NOT_FOUND:
        return call.parse(b"")
    if not response.is_success:
        raise error_of(response)
    try:
        return call.parse(response.content)
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadResponse(
            f"{call.method} {call.path} answered something else than the API promises: {_first_line(error)}",
            remedy="check that LATHE_URL is the address of a Lathe service, and that this package is as new as it",
        ) from error


def error_of(response: httpx.Response) -> APIError:
    """The typed error of a complete answer that is no success; also for one that is no problem document."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(
            type="about:blank",
            title=response.reason_phrase or "Unexpected answer",
            status=response.status_code,
            detail=f"HTTP {response.status_code} {response.reason_phrase} from {response.request.url}",
            code=f"http_{response.status_code}",
            remedy="check that LATHE_URL is the address of a Lathe service" if response.status_code < 500 else "",
        )
    return api_error(problem, retry_after_seconds=retry_after(response.headers))


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ConnectionFailed:
    """The typed error for a request that got no answer."""
    return ConnectionFailed(
        f"no answer from {url.scheme}://{url.netloc.decode()}: {_first_line(error) or type(error).__name__}",
        remedy="start the service with `lathe up`, or set LATHE_URL to its address",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that the answer asks for, given as a number or as a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def segment(value: str) -> str:
    """One path segment of an address: an empty one, or one with dots only, would name another resource."""
    if not value.strip("."):
        raise ValueError(f"not an identifier: {value!r}")
    return quote(value, safe="")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def reader(kind: type[T]) -> Callable[[bytes], T]:
    """Reads JSON."""
    return TypeAdapter(kind).validate_json


def nothing(_: bytes) -> None:
    """Reads an answer that has no body, or one that is streamed."""
    return None


def idempotency(idempotency_key: str | None = None) -> dict[str, str]:
    """The header that makes sending a POST again harmless."""
    return {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
