"""What a recipe will take on a machine, be it one chain or the candidates of a goal."""

import logging
from collections.abc import Mapping
from pathlib import Path

from optcore.errors import RecipeError
from optcore.estimate.chain import estimate_chain
from optcore.estimate.document import Estimate, Machine, Problem
from optcore.estimate.facts import ModelFacts
from optcore.estimate.learning import Rates
from optcore.estimate.race import estimate_race
from optcore.recipe import Recipe

log = logging.getLogger(__name__)


def estimate(
    recipe: Recipe,
    facts: ModelFacts,
    machine: Machine,
    rates: Rates | None = None,
    others: Mapping[str, ModelFacts] | None = None,
    folder: Path | None = None,
) -> Estimate:
    """Of a recipe on a model with these shapes.

    `others` are further models by JSON Pointer into the recipe, such as `/chain/1/teacher`; one that is missing counts
    as the source. With the `folder` of the model its files are asked too whether the targets have a place for it.
    A model that formulas never met is no reason to refuse a job: what was not reckoned is no fatal problem.
    """
    try:
        if recipe.is_race:
            return estimate_race(recipe, facts, machine, rates, others, folder)
        return estimate_chain(recipe, facts, machine, rates, others, folder)
    except RecipeError as error:
        problem = Problem(field=error.field, message=error.message, remedy=error.remedy)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        log.warning("a model that formulas do not know", exc_info=True)
        said = f"what this will take could not be reckoned: {type(error).__name__}"
        problem = Problem(field="/model", message=said, fatal=False)
    return Estimate(machine=machine, stages=(), results=(), problems=(problem,))
