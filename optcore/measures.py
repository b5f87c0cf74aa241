"""Whether what a recipe measures can be measured: answered before any work."""

from optcore.errors import RecipeError
from optcore.evaluate import Classification
from optcore.recipe import Recipe
from optcore.references import BUILT_IN
from optcore.report import Task


def check_measures(recipe: Recipe, task: Task | None = None) -> None:
    """Refuse evaluators without data or for another kind of model; its task is known once it is here.

    Evaluators for another kind of model that a recipe has by default are left out with a notice instead.
    """
    for number, evaluator in enumerate(recipe.evaluate):
        if isinstance(evaluator, Classification):
            _check_classification(recipe, evaluator, task, f"/evaluate/{number}")


def _check_classification(recipe: Recipe, evaluator: Classification, task: Task | None, field: str) -> None:
    if evaluator.path is None and recipe.calibration.path is None and recipe.calibration.dataset == BUILT_IN:
        raise RecipeError(
            f"{BUILT_IN} has no labels to measure accuracy with",
            remedy="name a file of labelled texts in `path`",
            field=f"{field}/path",
        )
    if task is not None and task not in evaluator.tasks:
        raise RecipeError(
            f"`classification` measures models that label texts, and this one is for {task}",
            remedy="use `fidelity`, or a checkpoint with a head for sequence classification",
            field=field,
        )
