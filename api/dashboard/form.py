"""Fields of a submitted form."""

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from api.body import read_body, storable
from api.errors import BadRequest, UnsupportedMediaType
from api.state import state_of

Fields = dict[str, str]
Pairs = list[tuple[str, str]]
MAX_FIELDS = 8
MAX_RECIPE_FIELDS = 6000
"""Of the form of a recipe: what it shows at most is below."""
_GROWTH = 3
"""What a text grows by, at most, when it is percent-encoded."""


async def fields(request: Request) -> Fields:
    """The form's fields, bounded. Raises the error that says why not."""
    return dict(await _pairs(request, MAX_FIELDS))


async def recipe_fields(request: Request) -> Pairs:
    """The fields of the form of a recipe, in their order. Raises the error that says why not."""
    return await _pairs(request, MAX_RECIPE_FIELDS)


async def _pairs(request: Request, most: int) -> Pairs:
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("the body is no form", remedy="use the form on the page")
    body = await read_body(request, _GROWTH * state_of(request).settings.max_body_bytes)
    try:
        found = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=most, errors="strict")
    except ValueError as error:
        raise BadRequest("the form cannot be read", remedy="use the form on the page") from error
    if not storable([list(pair) for pair in found]):
        raise BadRequest("the form has a NUL character", remedy="remove it")
    return found


FieldsDep = Annotated[Fields, Depends(fields)]
PairsDep = Annotated[Pairs, Depends(recipe_fields)]
