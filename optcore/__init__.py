"""The engine: takes a recipe, gives a smaller checkpoint and a measured report. Knows no web, no database, no queue.

    from optcore import load_recipe, optimize

Importing it loads no torch; the numeric rooms are entered only by the process of a stage.
"""

from optcore.artifact import Artifact
from optcore.engine import optimize
from optcore.errors import Failure, OptError
from optcore.recipe import Recipe, load_recipe, parse_recipe

__all__ = ["Artifact", "Failure", "OptError", "Recipe", "load_recipe", "optimize", "parse_recipe"]
