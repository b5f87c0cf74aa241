"""The base of every configuration object: frozen, closed to unknown keys, documented by its attribute docstrings."""

import hashlib
import json
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value: equal by content, hashable, refused when it carries a key that we do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. What digests are taken of."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return _CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def members(union: Any) -> tuple[type[BaseModel], ...]:
    """The classes of a closed union such as `Annotated[A | B, Field(discriminator=...)]`."""
    inner = get_args(union)[0]
    return get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)


@cache
def tag(member: type[BaseModel]) -> str:
    """The name by which a member of a closed union is chosen: the value of its one-literal field."""
    literals = [get_args(field.annotation) for field in member.model_fields.values() if _is_tag(field.annotation)]
    return str(literals[0][0])


def tags(union: Any) -> tuple[str, ...]:
    """The names of a closed union's members."""
    return tuple(tag(member) for member in members(union))


def _is_tag(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1
