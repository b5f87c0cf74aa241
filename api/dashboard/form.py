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
    return dict(await read_pairs(request, MAX_FIELDS))


async def recipe_fields(request: Request) -> Pairs:
    """The fields of the form of a recipe, in their order. Raises the error that says why not."""
    return await read_pairs(request, MAX_RECIPE_FIELDS)


async def read_pairs(request: Request, most: int, limit_bytes: int | None = None) -> Pairs:
    """At most so many names and values, in the order of the page. Raises the error that says why not."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("the body is no form", remedy="use the form on the page")
    body = await read_body(request, limit_bytes or _GROWTH * state_of(request).settings.max_body_bytes)
    try:
        found = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=most, errors="strict")
    except ValueError as error:
        raise BadRequest("the form cannot be read", remedy="use the form on the page") from error
    if not storable([list(pair) for pair in found]):
        raise BadRequest("the form has a NUL character", remedy="remove it")
    return found


FieldsDep = Annotated[Fields, Depends(fields)]
PairsDep = Annotated[Pairs, Depends(recipe_fields)]
