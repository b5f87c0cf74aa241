"""Whether a change of a draft would be refused, and why: each is tried, and judged by what judges submissions."""

import time
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from api.dashboard.recipe_form.posted import at, parts_of
from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import pointer, reason, recipe_from, root_causes

MOST_SECONDS = 0.5
"""Of this thread, for all the trials of one showing of the form: each takes a tenth of a millisecond to a third of one
in a recipe that people write, so a thousand of them."""
_ANY_MODEL = {"id": "any/model"}
_ROUNDS = 6


class Rules:
    """The rules as they bind one draft. What is wrong with it already is not held against a change."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._sound = _without_what_is_misspelt(document)
        self._before = _refusal(self._sound) if self._sound is not None else ""
        self._until = time.thread_time() + MOST_SECONDS

    def against(self, place: str, value: Any, *, is_begun: bool = False) -> str:
        """Why a value cannot be at a place, a JSON Pointer; empty where nothing is known against it.

        What `is_begun` may be incomplete: only how it goes with the rest is judged.
        """
        changed = self._copy()
        placed = changed is not None and _set(changed, parts_of(place), value)
        return self._judge(changed, is_begun) if changed is not None and placed else ""

    def against_adding(self, place: str, value: Any, index: int) -> str:
        """The same for one item more in a list, before the one of that number."""
        changed = self._copy()
        if changed is None:
            return ""
        try:
            at(changed, parts_of(place)).insert(index, value)
        except LookupError:
            _set(changed, parts_of(place), [value])
        return self._judge(changed, is_begun=True)

    def _copy(self) -> dict[str, Any] | None:
        return deepcopy(self._sound) if self._sound is not None and time.thread_time() < self._until else None

    def _judge(self, changed: dict[str, Any], is_begun: bool) -> str:
        said = _refusal(changed, is_begun)
        return said if said != self._before else ""


def _refusal(document: dict[str, Any], is_begun: bool = False) -> str:
    try:
        check(recipe_from(document))
    except RecipeError as error:
        if not isinstance(error.__cause__, ValidationError):
            return error.message
        return "" if is_begun else reason(root_causes(error.__cause__)[0])
    return ""


def _without_what_is_misspelt(document: dict[str, Any]) -> dict[str, Any] | None:
    """The draft without the parts that are no recipe's, so that the rest can be judged; None where nothing is left."""
    sound = deepcopy(document)
    for _ in range(_ROUNDS):
        try:
            recipe_from(sound)
        except RecipeError as error:
            if not isinstance(error.__cause__, ValidationError):
                return None
            fields = {pointer(each["loc"]) for each in root_causes(error.__cause__)}
            if fields == {"/chain"} and not sound.get("chain"):
                return {**sound, "chain": []}  # what may be added to it is still a question
            for field in fields:
                _drop(sound, parts_of(field))
        else:
            return sound
    return None


def _drop(document: dict[str, Any], parts: list[str]) -> None:
    """Take out the innermost mapping's key that a complaint is about; a recipe needs a model, whichever it is."""
    if not parts or parts[0] == "model":
        document["model"] = _ANY_MODEL
        return
    try:
        holder = at(document, parts[:-1])
        del holder[int(parts[-1]) if isinstance(holder, list) else parts[-1]]
    except (LookupError, ValueError, TypeError):
        _drop(document, parts[:-1])


def _set(document: dict[str, Any], parts: list[str], value: Any) -> bool:
    try:
        holder = at(document, parts[:-1])
    except LookupError:
        return False
    if isinstance(holder, list):
        holder[int(parts[-1])] = value
    elif isinstance(holder, dict):
        holder[parts[-1]] = value
    return True
