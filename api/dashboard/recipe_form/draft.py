"""A recipe that is being written: what the form's fields say, or the YAML beside them, and what is wrong with it.

The server keeps nothing of it. Each post carries both; the YAML holds when somebody changed it since it was shown, the
fields otherwise. The text stays as it was typed, comments too, until a field says something else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from api.body import storable
from api.dashboard import recipe_text
from api.dashboard.recipe_form import edits
from api.dashboard.recipe_form.posted import document_of
from api.dashboard.recipe_form.schema import brief, recipe_schema
from api.errors import BadRequest, ServiceError
from optcore.errors import OptError, RecipeError
from optcore.recipe import Recipe, recipe_from

Pairs = Sequence[tuple[str, str]]
MOST_TEXT = 32 * 1024
"""Characters of YAML, which is read at each pause of the typing; a recipe has a few thousand."""
_DEEPEST_BRACKETS = 100
"""The reader's time grows with the square of them."""
_DEEPEST = 24
"""A recipe's own values are no deeper than ten."""


@dataclass(frozen=True)
class Draft:
    """The recipe so far, whatever state it is in."""

    document: dict[str, Any]
    text: str
    """The same as YAML."""
    unreadable: OptError | ServiceError | None = None
    """Why the text could not be read; the document is then what the fields said before."""

    @property
    def shown(self) -> str:
        """What tells, when the text comes back, whether somebody changed it."""
        return _mark(self.text)

    @property
    def has_comments(self) -> bool:
        """Whether a change of a field will cost the text something."""
        return any(line.lstrip().startswith("#") or " #" in line for line in self.text.splitlines())


def of_recipe(recipe: Recipe) -> Draft:
    """The draft that a recipe is, without what its defaults say too, where that means the same."""
    whole = recipe.model_dump(mode="json")
    short = brief(recipe_schema(), whole)
    try:
        same = recipe_from(short) == recipe
    except RecipeError:
        same = False
    document = short if same else whole
    return Draft(document, to_yaml(document))


def of_text(text: str, pairs: Pairs = ()) -> Draft:
    """The draft that a text is; where that cannot be read, the fields beside it."""
    try:
        return Draft(_read(text), text)
    except (OptError, ServiceError) as error:
        return Draft(document_of(pairs), text, error)


def of_posted(pairs: Pairs) -> Draft:
    """The draft that a form posted, after what its button does. Raises `BadRequest` for what no form of ours posts."""
    plain = dict(pairs)
    text = plain.get("recipe", "").replace("\r\n", "\n")
    do = plain.get("do", "")
    if do != "fields" and _mark(text) != plain.get("shown"):
        draft = of_text(text, pairs)
        return draft if draft.unreadable or not do else _edited(draft, [do])
    draft = Draft(document_of(pairs), text)
    if not storable(draft.document):
        raise BadRequest("the form has a NUL character or half a surrogate pair", remedy="remove it")
    kinds = [(name.removeprefix("as:"), which) for name, which in pairs if name.startswith("as:/")]
    for pointer, which in kinds:
        _choose(draft.document, pointer, which)
    return _edited(draft, [do] if do not in ("", "fields") else [])


def _choose(document: dict[str, Any], pointer: str, which: str) -> None:
    """A choice inside of what another choice has just replaced is void."""
    holder = pointer.rpartition("/")[0]
    try:
        edits.choose(document, pointer, which)
    except BadRequest:
        if holder == "":
            raise


def _edited(draft: Draft, done: list[str]) -> Draft:
    for do in done:
        edits.edit(draft.document, do)
    try:
        before = _read(draft.text)
    except (OptError, ServiceError):
        return Draft(draft.document, to_yaml(draft.document))
    same = before == draft.document
    return Draft(draft.document, draft.text if same else to_yaml(_in_order(draft.document, before)))


def _in_order(new: Any, old: Any) -> Any:
    """The same document with the keys that both have in the order of the old one, then the others."""
    if isinstance(new, dict) and isinstance(old, dict):
        keys = dict.fromkeys([*(key for key in old if key in new), *new])
        return {key: _in_order(new[key], old.get(key)) for key in keys}
    if isinstance(new, list) and isinstance(old, list):
        return [_in_order(each, old[number] if number < len(old) else None) for number, each in enumerate(new)]
    return new


def _read(text: str) -> dict[str, Any]:
    if len(text) > MOST_TEXT:
        raise RecipeError(f"more than {MOST_TEXT} characters are too many for a form", remedy="submit it with the API")
    if _brackets(text) > _DEEPEST_BRACKETS:
        raise RecipeError("nested deeper than any recipe is", remedy="check the brackets")
    document = recipe_text.read(text)
    if not isinstance(document, dict):
        raise RecipeError(f"a recipe is a mapping, got {type(document).__name__}", remedy="see the templates")
    if _depth(document) > _DEEPEST:
        raise RecipeError("nested deeper than any recipe is", remedy="check the brackets and the indentation")
    return document


def _brackets(text: str) -> int:
    """How deep brackets are nested at most, those in texts counted too."""
    depth = most = 0
    for each in text:
        if each in "[{":
            depth += 1
            most = max(most, depth)
        elif each in "]}":
            depth -= 1
    return most


def _depth(document: Any) -> int:
    """Levels of mappings and lists, without recursion; counting ends where it is too deep."""
    level, depth = [document], 0
    while level and depth <= _DEEPEST:
        depth += 1
        inner = [each for value in level if isinstance(value, dict | list) for each in _items(value)]
        level = [each for each in inner if isinstance(each, dict | list)]
    return depth


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _mark(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()[:16]


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, as people write them; items of a list indented below its key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _plain_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flow = bool(value) and all(isinstance(each, str | int | float | None) for each in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow or None)


_Dumper.add_representer(list, _plain_list)


def to_yaml(document: dict[str, Any]) -> str:
    """The text of a draft."""
    if not document:
        return ""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)
