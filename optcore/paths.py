"""Every path of a worker's own file system that a recipe names, wherever it stands in it."""

from collections.abc import Callable
from typing import Any, TypeVar

from optcore.frozen import Frozen
from optcore.recipe import Recipe

Change = Callable[[str, str], str]
"""From a path and the JSON Pointer of its place to what is to stand there."""
Value = TypeVar("Value")


def with_paths(recipe: Recipe, change: Change) -> Recipe:
    """The recipe with every path changed; itself where it names none."""
    return _with_paths(recipe, change, "") if _may_name_paths(recipe) else recipe


def _may_name_paths(recipe: Recipe) -> bool:
    """Quick, and right about the many recipes that name none: each submission asks."""
    if recipe.model.path is not None or recipe.calibration.path is not None:
        return True
    entries = (*recipe.chain, *recipe.evaluate)
    return any(getattr(entry, "models", None) or getattr(entry, "texts", None) for entry in entries) or any(
        getattr(entry, "path", None) for entry in entries
    )


def _with_paths(value: Value, change: Change, pointer: str) -> Value:
    changed: Any = value
    if isinstance(value, tuple):
        changed = tuple(_with_paths(item, change, f"{pointer}/{place}") for place, item in enumerate(value))
    elif isinstance(value, Frozen):
        fields = {name: (getattr(value, name), f"{pointer}/{name}") for name in type(value).model_fields}
        changed = value.model_copy(update={name: _field(name, *field, change) for name, field in fields.items()})
    return changed  # type: ignore[no-any-return]


def _field(name: str, value: Any, pointer: str, change: Change) -> Any:
    if name == "path" and value is not None:
        return change(value, pointer)
    return _with_paths(value, change, pointer)
