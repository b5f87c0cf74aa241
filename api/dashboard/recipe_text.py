"""Recipes as people type them: YAML to a document, and each complaint to the line that it is about."""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from api.body import storable
from api.errors import Invalid, ServiceError
from optcore.errors import OptError, RecipeError
from optcore.recipe import pointer, reason, root_causes


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


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed here", problem_mark=self.get_mark())
        return super().compose_node(parent, index)


def read(text: str) -> Any:
    """The document of a text. Raises `RecipeError` or `Invalid`."""
    try:
        document = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {_first_words(error)}", remedy="check indentation and quoting") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not a recipe: {error}"[:300], remedy="check numbers, dates and brackets") from error
    if not storable(document):
        raise Invalid("a text has a NUL character or half a surrogate pair", remedy="remove it")
    return document


def complaints(error: OptError | ServiceError, text: str) -> list[Complaint]:
    """What there is to correct in a text that was refused with this error."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        found = [(pointer(each["loc"]), reason(each)) for each in root_causes(cause)]
        return [_complaint(text, field, why, _line_of(text, field)) for field, why in found]
    line = _marked_line(cause) or _line_of(text, error.field)
    return [_complaint(text, error.field, f"{error.message}. {error.remedy}".rstrip(". "), line)]


def _complaint(text: str, field: str, reason: str, line: int | None) -> Complaint:
    lines = text.splitlines()
    source = lines[line - 1] if line and line <= len(lines) else ""
    return Complaint(field, reason, line if source else None, source[:300])


def _first_words(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or "unexpected text"
    line = _marked_line(error)
    return f"{problem}, line {line}" if line else problem


def _marked_line(error: BaseException | None) -> int | None:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None


def _line_of(text: str, field: str) -> int | None:
    """The line of the deepest part of a JSON Pointer that is there."""
    if not field:
        return None
    try:
        node = yaml.compose(text, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    line = None
    for part in field.split("/")[1:]:
        step = _child(node, part.replace("~1", "/").replace("~0", "~"))
        if step is None:
            break
        line, node = step
    return line


def _child(node: Any, part: str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark.line + 1, item
    return None
