"""Fields of a submitted form of which some may be there more than once, as ticked boxes are."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from api.body import read_body, storable
from api.errors import BadRequest, UnsupportedMediaType

MAX_FIELDS = 64
MAX_bytes = 64 * 1024


@dataclass(frozen=True)
class Posted:
    """Names and values, in the order of the page."""

    pairs: tuple[tuple[str, str], ...]

    def one(self, name: str) -> str:
        """The last value of that name, without white space around it; empty where there is none."""
        return ([value for key, value in self.pairs if key == name] or [""])[-1].strip()

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of that name."""
        return tuple(value for key, value in self.pairs if key == name)


async def posted(request: Request) -> Posted:
    """The form's fields, bounded. Raises the error that says why not."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("the body is no form", remedy="use the form on the page")
    body = await read_body(request, MAX_bytes)
    try:
        found = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise BadRequest("the form cannot be read", remedy="use the form on the page") from error
    if not storable([list(pair) for pair in found]):
        raise BadRequest("the form has a NUL character", remedy="remove it")
    return Posted(tuple(found))


PostedDep = Annotated[Posted, Depends(posted)]
