"""Fields of a submitted form."""

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from api.body import read_body, storable
from api.errors import BadRequest, UnsupportedMediaType
from api.state import state_of

Fields = dict[str, str]
MAX_FIELDS = 8
_GROWTH = 3
"""What a text grows by, at most, when it is percent-encoded."""


async def fields(request: Request) -> Fields:
    """The form's fields, bounded. Raises the error that says why not."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("the body is no form", remedy="use the form on the page")
    body = await read_body(request, _GROWTH * state_of(request).settings.max_body_bytes)
    try:
        found = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise BadRequest("the form cannot be read", remedy="use the form on the page") from error
    if not storable(found):
        raise BadRequest("the form has a NUL character", remedy="remove it")
    return found


FieldsDep = Annotated[Fields, Depends(fields)]
