"""What the form's buttons do to a draft."""

from collections.abc import Callable
from typing import Any

from api.dashboard.recipe_form.adding import place_for
from api.dashboard.recipe_form.posted import at, is_index, parts_of
from api.dashboard.recipe_form.rules import Rules
from api.dashboard.recipe_form.schema import (
    Schema,
    choices,
    is_nullable,
    named,
    recipe_schema,
    resolved,
    single,
    variant_of,
    variants,
)
from api.dashboard.recipe_form.starters import starter
from api.errors import BadRequest

Document = dict[str, Any]


def edit(document: Document, do: str) -> None:
    """Do what a button says, such as `add /chain 0` or `up /chain/1`. Raises `BadRequest` for what cannot be."""
    verb, _, rest = do.partition(" ")
    pointer, _, which = rest.partition(" ")
    parts = parts_of(pointer)
    if verb not in _VERBS or not parts:
        raise BadRequest("the form has no such button", remedy="open the page again")
    try:
        _VERBS[verb](document, parts, which)
    except (LookupError, ValueError, TypeError) as error:
        raise BadRequest(f"there is no {pointer[:200]} in the form", remedy="open the page again") from error


def choose(document: Document, pointer: str, which: str) -> None:
    """Make a value be of another kind: the one of that number, or (empty) what holds by default.

    What is of that kind already stays as it is. Raises `BadRequest`.
    """
    parts = parts_of(pointer)
    try:
        kinds = variants(_schema_at(document, parts))
        holder = at(document, parts[:-1])
        if which == "":
            _remove(holder, parts[-1])
            return
        now = variant_of(kinds, at(holder, parts[-1:])) if _has(holder, parts[-1]) else None
        if now != int(which):
            _assign(holder, parts[-1], starter(resolved(kinds[int(which)])))
    except (LookupError, ValueError, TypeError) as error:
        raise BadRequest(f"there is no {pointer[:200]} in the form", remedy="open the page again") from error


def _set(document: Document, parts: list[str], _which: str) -> None:
    schema = _schema_at(document, parts)
    whole = {**schema, "default": None} if is_nullable(schema) else schema
    for depth in range(1, len(parts)):  # a group that is not said yet
        if not _has(at(document, parts[: depth - 1]), parts[depth - 1]):
            _assign(at(document, parts[: depth - 1]), parts[depth - 1], {})
    _assign(at(document, parts[:-1]), parts[-1], starter(single(whole)))


def _add(document: Document, parts: list[str], which: str) -> None:
    pointer = "/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
    items = resolved(single(_schema_at(document, parts))["items"])
    kinds = [items] if choices(items) is not None else variants(items)
    if not _has(at(document, parts[:-1]), parts[-1]):
        _assign(at(document, parts[:-1]), parts[-1], [])
    held: list[Any] = at(document, parts)
    item = starter(resolved(kinds[int(which)]))
    index, _ = place_for(Rules(document), pointer, item, len(held))
    held.insert(index, item)


def _drop(document: Document, parts: list[str], _which: str) -> None:
    _remove(at(document, parts[:-1]), parts[-1])


def _up(document: Document, parts: list[str], _which: str) -> None:
    _swap(at(document, parts[:-1]), int(parts[-1]) - 1)


def _down(document: Document, parts: list[str], _which: str) -> None:
    _swap(at(document, parts[:-1]), int(parts[-1]))


def _swap(held: list[Any], index: int) -> None:
    """Change the places of an item and the next one."""
    if not 0 <= index < len(held) - 1:
        raise IndexError(index)
    held[index], held[index + 1] = held[index + 1], held[index]


_VERBS: dict[str, Callable[[Document, list[str], str], None]] = {
    "set": _set,
    "add": _add,
    "drop": _drop,
    "up": _up,
    "down": _down,
}


def _has(holder: Any, part: str) -> bool:
    return part in holder if isinstance(holder, dict) else is_index(part) and int(part) < len(holder)


def _assign(holder: Any, part: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[part] = value
    else:
        holder[int(part)] = value


def _remove(holder: Any, part: str) -> None:
    if isinstance(holder, dict):
        holder.pop(part, None)
    else:
        del holder[int(part)]


def _schema_at(document: Document, parts: list[str]) -> Schema:
    """The schema of a place, by what the document has on the way. Raises `LookupError` for what no recipe has."""
    schema, value = recipe_schema(), document
    for part in parts:
        kinds = variants(schema)
        found = variant_of(kinds, value) if len(kinds) > 1 else 0
        known = kinds[found if found is not None else 0]
        tag = named(known)
        if tag and part == tag[0]:
            raise LookupError(part)
        schema = resolved(known["properties"][part] if "properties" in known else known["items"])
        try:
            value = at(value, [part])
        except LookupError:
            value = {}
    return schema
