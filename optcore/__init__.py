"""The engine: takes a recipe, gives a smaller checkpoint and a measured report. Knows no web, no database, no queue.

    from optcore import load_recipe, optimize

Importing it loads no torch; the numeric rooms are entered only by the process of a stage. What is named here is
imported when it is first asked for: every process that needs one module of the engine would wait for all of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optcore.engine import optimize
    from optcore.errors import Failure, OptError
    from optcore.manifest import Artifact
    from optcore.recipe import Recipe, load_recipe, parse_recipe

__all__ = ["Artifact", "Failure", "OptError", "Recipe", "load_recipe", "optimize", "parse_recipe"]

_HOMES = {
    "Artifact": "manifest",
    "Failure": "errors",
    "OptError": "errors",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "optimize": "engine",
    "parse_recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
