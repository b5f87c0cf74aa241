"""What a form posts, as the document that it stands for.

A field's name says how its text is read and where the value goes: `number:/chain/0/steps`. An empty text is a value
that is not given. Nothing here knows a recipe: what does not belong in one is refused where all recipes are judged.
"""

from collections.abc import Callable, Iterable
from typing import Any

import yaml

from api.errors import BadRequest
from optcore.errors import RecipeError
from optcore.yaml_text import read_document

MAX_DEPTH = 16
"""Parts of a pointer; a recipe's own are no longer than 8."""
_ABSENT = object()


def document_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The document that a form's fields make together. Raises `BadRequest` where they contradict each other."""
    root: dict[str, Any] = {}
    for name, text in dict(pairs).items():  # a box that is ticked comes after what is posted without the tick
        kind, _, pointer = name.partition(":")
        if pointer.startswith("/") and kind in _READERS:
            _put(root, parts_of(pointer), _READERS[kind](text))
        elif pointer.startswith("/") and kind == "rest":
            _put_rest(root, parts_of(pointer), read_yaml(text))
        elif name == "rest:":
            _put_rest(root, [], read_yaml(text))
    return root


def parts_of(pointer: str) -> list[str]:
    """The parts of a JSON Pointer (RFC 6901). Raises `BadRequest` for one that is too deep."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    if len(parts) > MAX_DEPTH:
        raise _contradiction()
    return parts


def at(document: Any, parts: Iterable[str]) -> Any:
    """The value at a place. Raises `LookupError` where there is none."""
    value = document
    for part in parts:
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list) and is_index(part):
            value = value[int(part)]
        else:
            raise LookupError(part)
    return value


def is_index(part: str) -> bool:
    """Whether a part of a pointer is the number of an item."""
    return part.isascii() and part.isdecimal() and len(part) <= 6


def read_yaml(text: str) -> Any:
    """A value typed as YAML; the text itself where it is none, so that it is shown again and complained of."""
    try:
        return read_document(text) if text.strip() else _ABSENT
    except RecipeError:
        return text


def read_number(text: str) -> Any:
    """A number where the text is one; else the text, such as `auto`."""
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or _ABSENT


def _read_numbers(text: str) -> Any:
    return [read_number(each) for each in text.replace(",", " ").split()] or _ABSENT


def _read_lines(text: str) -> Any:
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()] or _ABSENT


def _read_pairs(text: str) -> Any:
    halves = [line.partition(":") for line in _given(_read_lines(text))]
    return {key.strip(): value.strip() for key, _, value in halves} or _ABSENT


def _given(lines: Any) -> list[str]:
    return [] if lines is _ABSENT else lines


_READERS: dict[str, Callable[[str], Any]] = {
    "text": lambda text: text.replace("\r\n", "\n") or _ABSENT,
    "number": read_number,
    "numbers": _read_numbers,
    "lines": _read_lines,
    "pairs": _read_pairs,
    "value": read_yaml,
    "map": lambda _: {},
    "list": lambda _: [],
}


def _put(root: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set a value at a place, with the mappings that lead there; an absent one only ends what an earlier field set."""
    try:
        holder = at(root, parts[:-1])
    except LookupError:
        if value is _ABSENT:
            return
        holder = {}
        _put(root, parts[:-1], holder)
    part = parts[-1]
    if isinstance(holder, dict):
        if value is _ABSENT:
            holder.pop(part, None)
        else:
            holder[part] = value
    elif isinstance(holder, list) and is_index(part) and int(part) <= len(holder):
        holder[int(part) :] = [None if value is _ABSENT else value]
    else:
        raise _contradiction()


def _put_rest(root: dict[str, Any], parts: list[str], value: Any) -> None:
    """Keys of a mapping that no control of the form is for; what is no mapping becomes one, to be complained of."""
    if value is _ABSENT:
        return
    if not isinstance(value, dict):
        value = {str(value)[:200]: None}
    try:
        holder = at(root, parts)
    except LookupError:
        _put(root, parts, value)
        return
    if not isinstance(holder, dict):
        raise _contradiction()
    holder.update(value)


def written(value: Any) -> str:
    """A value as one line of YAML, or more where it is long."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=100, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _contradiction() -> BadRequest:
    return BadRequest("the form's fields do not fit together", remedy="open the page again")
