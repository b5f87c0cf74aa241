"""What can be known before any work: the stages of a recipe, and whether they fit together."""

from optcore.errors import RecipeError
from optcore.frozen import tag
from optcore.recipe import Recipe
from optcore.techniques import Technique

_DENSE = frozenset({"dense"})


def stage_names(recipe: Recipe) -> tuple[str, ...]:
    """The stages of a run in order; a gate's fallbacks are added when they are needed."""
    names = ["0-fetch"]
    for number, technique in enumerate(recipe.chain, start=1):
        names.append(technique_stage(number, technique))
        if technique.gate:
            names.append(gate_stage(names[-1]))
    last = len(recipe.chain)
    return (*names, f"{last + 1}-export", f"{last + 2}-evaluate")


def technique_stage(number: int, technique: Technique, attempt: int = 0) -> str:
    """Name of a technique's stage; `attempt` counts the fallbacks."""
    name = f"{number}-{tag(type(technique))}"
    return f"{name}-fallback{attempt}" if attempt else name


def gate_stage(technique_stage: str) -> str:
    """Name of the stage that measures a technique's result."""
    return f"{technique_stage}-gate"


def check(recipe: Recipe) -> None:
    """Refuse a chain whose parts do not fit, before anything is downloaded. Raises `RecipeError`."""
    properties = _DENSE
    for number, technique in enumerate(recipe.chain):
        if missing := technique.needs - properties:
            raise RecipeError(
                f"{technique.title} needs a model that is {', '.join(sorted(missing))}; "
                f"after the stages before it the model is {', '.join(sorted(properties))}",
                remedy="change the order of the chain, or remove this entry",
                field=f"/chain/{number}",
            )
        properties = (properties | technique.leaves) - technique.removes
    if "quantized" not in properties:
        raise RecipeError("nothing in the chain quantizes", remedy="add a `ptq` entry", field="/chain")
    _check_target(recipe)


def _check_target(recipe: Recipe) -> None:
    for number, technique in enumerate(recipe.chain):
        for candidate in (technique, *technique.alternatives):
            for field, held in (("scheme", recipe.target.schemes), ("kv_cache", recipe.target.kv_caches)):
                wanted = getattr(candidate, field, None)
                if wanted is not None and wanted not in held:
                    raise RecipeError(
                        f"{recipe.target.title} cannot hold {wanted}",
                        remedy=f"it holds {', '.join(sorted(held))}",
                        field=f"/chain/{number}/{field}",
                    )
