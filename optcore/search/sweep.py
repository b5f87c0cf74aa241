"""The recipes that a sweep stands for: every combination of the values that it lists for fields of the recipe."""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

from optcore.errors import RecipeError
from optcore.recipe import Recipe, recipe_from
from optcore.search.objective import MAX_CANDIDATES

FIELDS = ("chain", "calibration", "target", "also", "seed")
"""What may differ between results that are compared: not the model they are held against, nor what is measured."""
_NAMES = frozenset({"id", "path", "dataset", "revision", "subset"})
"""Keys that say where a model or a text comes from."""


class Swept(NamedTuple):
    """One combination."""

    recipe: Recipe
    """Without the sweep."""
    chosen: tuple[tuple[str, Any], ...]
    """Pointers and their values."""

    @property
    def said(self) -> str:
        """For people; empty where nothing is swept."""
        return ", ".join(f"{pointer} = {value!r}" for pointer, value in self.chosen)


def swept(recipe: Recipe) -> tuple[Swept, ...]:
    """Every combination, the last pointer's values first. Raises `RecipeError` that names the place in `sweep`."""
    alone = recipe.model_copy(update={"sweep": {}})
    if not recipe.sweep:
        return (Swept(alone, ()),)
    count = prod(map(len, recipe.sweep.values()))
    if count > MAX_CANDIDATES:
        raise RecipeError(
            f"the sweep has {count} combinations, and a run has room for {MAX_CANDIDATES}",
            remedy="leave values out, or split it into several jobs",
            field="/sweep",
        )
    document, own = alone.model_dump(mode="json"), alone.model_dump(mode="json", include={"version", *FIELDS})
    paths = {pointer: _path(pointer, own) for pointer in recipe.sweep}
    _check_apart(paths)
    combinations = list(product(*(enumerate(values) for values in recipe.sweep.values())))
    found = tuple(_one(alone, document, paths, places) for places in combinations)
    _check_differ(found, combinations)
    return found


def _one(alone: Recipe, document: dict[str, Any], paths: dict[str, list[str]], places: tuple[Any, ...]) -> Swept:
    for path, (_, value) in zip(paths.values(), places, strict=True):
        document = _replaced(document, path, value)
    try:
        found = recipe_from(document)
    except RecipeError as error:
        raise _at_value(error, paths, [place for place, _ in places]) from error
    if foreign := sorted(set(_named(document)) - set(_named(alone.model_dump(mode="json")))):
        raise RecipeError(
            f"the sweep names {foreign[0][1]!r} at {foreign[0][0]}: it varies settings, not models or texts",
            remedy="list chains with other models in `objective.candidates`, and run other texts as jobs of their own",
            field="/sweep",
        )
    return Swept(found, tuple((pointer, value) for pointer, (_, value) in zip(paths, places, strict=True)))


def _path(pointer: str, document: dict[str, Any]) -> list[str]:
    """The parts of a pointer that leads to something."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    if parts[0] not in FIELDS:
        raise _astray(pointer, f"a sweep varies {', '.join(FIELDS)}", "run what differs elsewhere as jobs of its own")
    value: Any = document
    for depth, part in enumerate(parts):
        if isinstance(value, list) and part not in map(str, range(len(value))):
            why = f"it has {len(value)} entries at /{'/'.join(parts[:depth])}, and none is {part!r}"
            raise _astray(pointer, why, "count them from 0, without leading zeros")
        if not isinstance(value, list) and not (isinstance(value, dict) and part in value):
            raise _astray(pointer, f"there is no {part!r}", "point at a field of the recipe, such as /chain/0/scheme")
        value = value[int(part)] if isinstance(value, list) else value[part]
    return parts


def _astray(pointer: str, why: str, remedy: str) -> RecipeError:
    return RecipeError(f"the sweep cannot vary {pointer}: {why}", remedy=remedy, field=_place(pointer))


def _check_apart(paths: dict[str, list[str]]) -> None:
    for pointer, path in paths.items():
        for other, inner in paths.items():
            if pointer != other and inner[: len(path)] == path:
                raise _astray(other, f"it lies inside {pointer}, which is varied too", "leave one of them out")


def _check_differ(found: tuple[Swept, ...], combinations: list[tuple[Any, ...]]) -> None:
    """Refuse what would be one candidate twice: a value that is repeated, or says the same as another one."""
    first: dict[str, tuple[Any, ...]] = {}
    for one, places in zip(found, combinations, strict=True):
        before = first.setdefault(one.recipe.digest, places)
        for (pointer, value), (old, _), (new, _) in zip(one.chosen, before, places, strict=True):
            if old != new:
                raise RecipeError(
                    f"{value!r} makes a recipe that the sweep has already",
                    remedy="leave it out",
                    field=f"{_place(pointer)}/{new}",
                )


def _replaced(value: Any, path: list[str], new: Any) -> Any:
    """A copy of a document with another value at a path."""
    if not path:
        return new
    if isinstance(value, list):
        return [_replaced(item, path[1:], new) if str(n) == path[0] else item for n, item in enumerate(value)]
    return {**value, path[0]: _replaced(value[path[0]], path[1:], new)}


def _at_value(error: RecipeError, paths: dict[str, list[str]], places: list[int]) -> RecipeError:
    """The error at the value that it is about, where one of them is plainly to blame."""
    blamed = [pointer for pointer in paths if f"{error.field}/".startswith(f"{pointer}/")]
    if not blamed and len(paths) == 1:
        blamed = list(paths)
    if len(blamed) != 1:
        return RecipeError(f"a combination of the sweep is none: {error}", remedy=error.remedy, field="/sweep")
    place = list(paths).index(blamed[0])
    return RecipeError(error.message, remedy=error.remedy, field=f"{_place(blamed[0])}/{places[place]}")


def _place(pointer: str) -> str:
    return "/sweep/" + pointer.replace("~", "~0").replace("/", "~1")


def _named(value: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Every name of a model or a text, with its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if key in _NAMES and isinstance(item, str):
                yield f"{pointer}/{key}", item
            else:
                yield from _named(item, f"{pointer}/{key}")
