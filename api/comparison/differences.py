"""Where recipes differ, by JSON Pointer (RFC 6901)."""

from collections.abc import Iterator, Sequence
from typing import Any

from lathe.comparison_models import Difference

_TAGS = ("technique", "evaluator", "format")
"""Keys whose value says what kind of thing a mapping is: two kinds differ as a whole."""


def differences(recipes: Sequence[dict[str, Any]]) -> tuple[Difference, ...]:
    """Every place in which not all of them agree, in the order of the documents."""
    return tuple(_walk("", recipes))


def _walk(pointer: str, values: Sequence[Any]) -> Iterator[Difference]:
    if all(value == values[0] for value in values[1:]):
        return
    if all(isinstance(value, dict) for value in values) and _are_one_kind(values):
        for key in dict.fromkeys(key for value in values for key in value):
            part = key.replace("~", "~0").replace("/", "~1")
            yield from _walk(f"{pointer}/{part}", [value.get(key) for value in values])
    elif all(isinstance(value, list) for value in values):
        for index in range(max(map(len, values))):
            yield from _walk(f"{pointer}/{index}", [value[index] if index < len(value) else None for value in values])
    else:
        yield Difference(pointer=pointer, values=tuple(values))


def _are_one_kind(values: Sequence[dict[str, Any]]) -> bool:
    return all(len({str(value.get(tag)) for value in values}) == 1 for tag in _TAGS)
