"""YAML as strangers may send it: plain values only, and every way it can be wrong as one typed error."""

from typing import Any

import yaml

from optcore.errors import RecipeError


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the base class, but an alias is an error with its place."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed here", problem_mark=self.get_mark())
        return super().compose_node(parent, index)


def read_document(text: str) -> Any:
    """The document of a text (JSON is YAML too). Raises `RecipeError` that names the line."""
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise RecipeError(f"not valid YAML: {_first_words(error)}", remedy="check indentation and quoting") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not a recipe: {error}"[:300], remedy="check numbers, dates and brackets") from error


def marked_line(error: BaseException | None) -> int | None:
    """The line, counted from 1, that an error of the parser points at."""
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None


def _first_words(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or "unexpected text"
    line = marked_line(error)
    return f"{problem}, line {line}" if line else problem
