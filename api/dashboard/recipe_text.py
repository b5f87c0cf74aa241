"""Recipes as people type them: YAML to a document, and each complaint to the line that it is about."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from api.body import storable
from api.errors import Invalid, ServiceError
from optcore.errors import OptError
from optcore.recipe import pointer, reason, root_causes
from optcore.yaml_text import PlainLoader, marked_line, read_document

MOST_COMPLAINTS = 50
"""What a reader corrects at once; the rest is told when these are gone."""


@dataclass(frozen=True)
class Complaint:
    """One thing to correct."""

    field: str
    """JSON Pointer; empty for the whole."""
    reason: str
    line: int | None
    """Counted from 1."""
    source: str
    """That line."""


def read(text: str) -> Any:
    """The document of a text. Raises `RecipeError` or `Invalid`."""
    document = read_document(text)
    if not storable(document):
        raise Invalid("a text has a NUL character or half a surrogate pair", remedy="remove it")
    return document


def complaints(error: OptError | ServiceError, text: str) -> list[Complaint]:
    """What there is to correct in a text that was refused with this error."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        found = [(pointer(each["loc"]), reason(each)) for each in root_causes(cause)[:MOST_COMPLAINTS]]
        root = _composed(text)
        return [_complaint(text, field, why, _line_of(root, field)) for field, why in found]
    line = marked_line(cause) or (_line_of(_composed(text), error.field) if error.field else None)
    return [
        _complaint(
            text, error.field, f"{error.message}. {error.remedy[:1].upper()}{error.remedy[1:]}".rstrip(". "), line
        )
    ]


def lines_of(text: str, fields: Iterable[str]) -> set[int]:
    """The lines, counted from 1, of those of the JSON Pointers that lead somewhere in a text."""
    root = _composed(text)
    return {line for field in fields for line in _span(root, field)}


def _complaint(text: str, field: str, reason: str, line: int | None) -> Complaint:
    lines = text.splitlines()
    source = lines[line - 1] if line and line <= len(lines) else ""
    return Complaint(field, reason, line if source else None, source[:300])


def _composed(text: str) -> Any:
    """The text's nodes with their places; None for one that is no YAML."""
    try:
        return yaml.compose(text, Loader=PlainLoader)
    except (yaml.YAMLError, RecursionError):
        return None


def _line_of(root: Any, field: str) -> int | None:
    """The line of the deepest part of a JSON Pointer that is there."""
    steps = list(_steps(root, field))
    return steps[-1][0] if steps else None


def _span(root: Any, field: str) -> range:
    """The lines from that of a JSON Pointer's key to the last of its value; none where it leads nowhere."""
    steps = list(_steps(root, field))
    if not steps or len(steps) < field.count("/"):
        return range(0)
    line, node = steps[-1]
    while isinstance(node, yaml.CollectionNode) and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    return range(line, max(line, node.end_mark.line + bool(node.end_mark.column)) + 1)


def _steps(root: Any, field: str) -> Iterator[tuple[int, Any]]:
    """The line and the node of each part of a JSON Pointer, as far as they are there."""
    node = root
    for part in field.split("/")[1:]:
        step = _child(node, part.replace("~1", "/").replace("~0", "~"))
        if step is None:
            return
        yield step
        _, node = step


def _child(node: Any, part: str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark.line + 1, item
    return None
