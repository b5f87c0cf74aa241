"""Request bodies: JSON, bounded, and made of text that a database can store."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from api.errors import BadRequest, BodyTooLarge, Invalid, UnsupportedMediaType
from api.state import state_of

M = TypeVar("M", bound=BaseModel)


async def json_body(request: Request) -> Any:
    """The body as plain values. Raises the error that says why not."""
    return parsed(await json_text(request))


async def json_text(request: Request) -> bytes:
    """The body, which says that it is JSON. Raises the error that says why not."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"the body is {kind[:64]}", remedy="send JSON, as application/json")
    return await read_body(request, state_of(request).settings.max_body_bytes)


def body_of(model: type[M]) -> Callable[[Request], Coroutine[Any, Any, M]]:
    """A dependency that reads the body as a model."""

    async def read(request: Request) -> M:
        document = await json_body(request)
        try:
            return model.model_validate_json(json.dumps(document))
        except ValidationError as error:
            first = error.errors()[0]
            where = "/".join(str(part) for part in first["loc"])
            raise Invalid(f"/{where}: {first['msg']}", remedy="correct the body; see /openapi.json") from error

    return read


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """All of it. Raises `BodyTooLarge` as soon as it is."""
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    too_large = declared.isdecimal() and int(declared) > limit_bytes
    if not too_large:
        async for chunk in request.stream():
            body += chunk
            if too_large := len(body) > limit_bytes:
                break
    if too_large:
        raise BodyTooLarge(f"the body is larger than {limit_bytes} bytes", remedy="a recipe is a few kilobytes")
    return bytes(body)


def parsed(body: bytes) -> Any:
    """JSON as plain values. Raises `BadRequest`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}"[:200], remedy="check quotes, commas and brackets") from error
    plain = body.isascii() and b"\\u" not in body and b"\0" not in body  # UTF-16 has those
    if not plain and not storable(document):
        raise BadRequest("the body has a NUL character or half a surrogate pair in a text", remedy="remove it")
    return document


def storable(document: Any) -> bool:
    """Whether PostgreSQL takes every text in a plain document."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            return False
    return True
