"""Every path of a worker's own file system that a recipe names, wherever it stands in it."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from optcore.places import rewritten
from optcore.recipe import Recipe


def with_paths(recipe: Recipe, change: Callable[[str, str], str]) -> Recipe:
    """The recipe with `change(path, its JSON Pointer)` in the place of every path; itself where it names none."""

    def at(value: Any, pointer: str) -> Any:
        is_path = pointer.endswith("/path") and isinstance(value, str)
        return change(value, pointer) if is_path else value

    return rewritten(recipe, at) if _may_name_paths(recipe) else recipe


def public(recipe: Recipe) -> Recipe:
    """The recipe as it may be published: folders of this machine by their names alone, no bookkeeping of the user's."""
    return with_paths(recipe, lambda path, _: Path(path).name).model_copy(update={"metadata": {}})


def _may_name_paths(recipe: Recipe) -> bool:
    """Quick, and right about the many recipes that name none: each submission asks."""
    if recipe.model.path is not None or recipe.calibration.path is not None:
        return True
    candidates = recipe.objective.candidates if recipe.objective else ()
    for technique in chain(recipe.chain, *candidates):
        if technique.models or technique.drafts or technique.texts:
            return True
    return any(getattr(evaluator, "path", None) for evaluator in recipe.evaluate)
