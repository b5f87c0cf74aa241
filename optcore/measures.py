"""Whether what a recipe measures can be measured: answered before any work."""

from os.path import normpath

from optcore.architecture import NO_limit
from optcore.errors import RecipeError
from optcore.evaluate import Acceptance, AnyEvaluator, Classification, Engines, Fidelity, LongContext
from optcore.evaluate.long_context import LENGTH_tokens, LONGEST_tokens
from optcore.recipe import Recipe
from optcore.references import BUILT_IN, TextSource
from optcore.report import GateMetric, Task
from optcore.runners import CPU_TARGETS
from optcore.techniques import AttentionWindow, Technique
from optcore.techniques.draft import Draft
from optcore.techniques.training import Training


def check_measures(recipe: Recipe, task: Task | None = None) -> None:
    """Refuse evaluators without data or for another kind of model, and gates that none of them measures.

    The model's task is known once it is here. Other evaluators that do not fit it are left out with a notice: a recipe
    has them by default. Raises `RecipeError`.
    """
    for number, evaluator in enumerate(recipe.evaluate):
        if isinstance(evaluator, Classification):
            _check_classification(recipe, evaluator, task, f"/evaluate/{number}")
    for number, technique in enumerate(recipe.chain):
        if technique.gate:
            gate_evaluator(recipe, technique.gate.metric, task, f"/chain/{number}/gate/metric")


def check_lengths(recipe: Recipe, longest: int) -> None:
    """Refuse texts of acceptance that leave a model of so many positions no prompt. Raises `RecipeError`."""
    for number, evaluator in enumerate(evaluators(recipe, longest)):
        if isinstance(evaluator, Acceptance) and evaluator.new_tokens >= longest:
            raise RecipeError(
                f"the model holds {longest} tokens, and {evaluator.new_tokens} are to be written behind a prompt",
                remedy="give `acceptance` fewer `new_tokens`",
                field=f"/evaluate/{number}/new_tokens" if number < len(recipe.evaluate) else "/evaluate",
            )


def evaluators(recipe: Recipe, longest: int = NO_limit) -> tuple[AnyEvaluator, ...]:
    """What the recipe names; of a model that gets a window what lies beyond it; how a draft does, on texts that a
    model of `longest` positions holds; and what engines make of several targets, or of one for a CPU."""
    return (*recipe.evaluate, *_beyond_windows(recipe), *_of_drafts(recipe, longest), *_in_engines(recipe))


def result_evaluators(recipe: Recipe, longest: int, name: str) -> tuple[AnyEvaluator, ...]:
    """What is measured of one result; engines are given the source with the main one alone, which has no name."""
    asked = evaluators(recipe, longest)
    if not name:
        return asked
    return tuple(each.model_copy(update={"source": False}) if isinstance(each, Engines) else each for each in asked)


def step_evaluators(recipe: Recipe) -> tuple[AnyEvaluator, ...]:
    """What is measured of the model on its way to the result, beside which no draft stands yet, and which nobody
    serves."""
    return tuple(evaluator for evaluator in evaluators(recipe) if not isinstance(evaluator, Acceptance | Engines))


def draft_evaluators(recipe: Recipe, longest: int = NO_limit) -> tuple[AnyEvaluator, ...]:
    """What is measured of a draft right when it is made: what will be of the result, without times."""
    asked = (evaluator for evaluator in evaluators(recipe, longest) if isinstance(evaluator, Acceptance))
    return tuple(evaluator.model_copy(update={"timed": False}) for evaluator in asked)


def _beyond_windows(recipe: Recipe) -> tuple[AnyEvaluator, ...]:
    windows = [technique.window for technique in recipe.chain if isinstance(technique, AttentionWindow)]
    if not windows or any(isinstance(evaluator, LongContext) for evaluator in recipe.evaluate):
        return ()
    length = max(LENGTH_tokens, 4 * windows[-1])
    return (LongContext(window=windows[-1], sequence_length=min(length, LONGEST_tokens)),)


def _of_drafts(recipe: Recipe, longest: int) -> tuple[AnyEvaluator, ...]:
    if any(isinstance(evaluator, Acceptance) for evaluator in recipe.evaluate):
        return ()
    drafts = (technique for technique in recipe.chain if isinstance(technique, Draft))
    return tuple(Acceptance(tokens=draft.tokens).within(longest) for draft in drafts)


def _in_engines(recipe: Recipe) -> tuple[AnyEvaluator, ...]:
    if not recipe.evaluate or any(isinstance(evaluator, Engines) for evaluator in recipe.evaluate):
        return ()
    return (Engines(),) if recipe.also or recipe.target.format in CPU_TARGETS else ()


def gate_evaluator(recipe: Recipe, metric: GateMetric, task: Task | None = None, field: str = "/chain") -> AnyEvaluator:
    """What measures a gate's metric: the recipe's own evaluator that can, on the text that the report is measured on.

    Raises `RecipeError` where there is none.
    """
    for evaluator in (*recipe.evaluate, Fidelity()):
        if metric in evaluator.gate_metrics and (task is None or task in evaluator.tasks):
            return evaluator
    labels = metric in Classification.gate_metrics
    raise RecipeError(
        f"nothing in `evaluate` measures {metric}" + (f" of a model for {task}" if task else ""),
        remedy="add a `classification` entry to `evaluate`" if labels else "gate on `accuracy` or `agreement`",
        field=field,
    )


def measured_on_training(field: str) -> RecipeError:
    """What is said where accuracy would be that on training data."""
    return RecipeError(
        "accuracy would be measured on the texts that the chain trains on",
        remedy="name a file of other texts in `path`",
        field=field,
    )


def _check_classification(recipe: Recipe, evaluator: Classification, task: Task | None, field: str) -> None:
    if evaluator.path is None and recipe.calibration.path is None and recipe.calibration.dataset == BUILT_IN:
        raise RecipeError(
            f"{BUILT_IN} has no labels to measure accuracy with",
            remedy="name a file of labelled texts in `path`",
            field=f"{field}/path",
        )
    may_train = [one for technique in recipe.chain for one in (technique, *technique.alternatives)]
    if any(_is_trained_on(evaluator, technique, recipe) for technique in may_train):
        raise measured_on_training(f"{field}/path")
    if task is not None and task not in evaluator.tasks:
        raise RecipeError(
            f"`classification` measures models that label texts, and this one is for {task}",
            remedy="use `fidelity`, or a checkpoint with a head for sequence classification",
            field=field,
        )


def _is_trained_on(evaluator: Classification, technique: Technique, recipe: Recipe) -> bool:
    if not isinstance(technique, Training) or technique.data.kind != "labelled":
        return False
    trained = technique.data if technique.data.is_own else recipe.calibration
    measured = TextSource(path=evaluator.path) if evaluator.path else recipe.calibration
    return _named(measured) == _named(trained)


def _named(text: TextSource) -> tuple[str | None, ...]:
    """Which text it is, by its name alone; what the files say is asked once they are here (`optcore.held_out`)."""
    return (normpath(text.path),) if text.path else (text.dataset, text.subset)
