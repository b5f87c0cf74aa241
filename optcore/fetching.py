"""What a recipe needs from outside: asked for before anything is done, and pinned to the commits that came."""

from typing import Any

from optcore.evaluate import Classification, Fidelity
from optcore.frozen import Frozen
from optcore.places import rewritten
from optcore.recipe import Recipe
from optcore.stage import FetchWork


def fetch_work(recipe: Recipe) -> FetchWork:
    """What a recipe needs from outside, and what there must be enough of."""
    chain = list(enumerate(recipe.chain))
    return FetchWork(
        model=recipe.model,
        calibration=recipe.calibration,
        evaluations=tuple(each.sequence_length for each in recipe.evaluate if isinstance(each, Fidelity)),
        classifications=tuple(each for each in recipe.evaluate if isinstance(each, Classification)),
        models={f"/chain/{n}/{name}": ref for n, one in chain for name, ref in one.models.items()},
        texts={f"/chain/{n}/{name}": needed for n, one in chain for name, needed in one.texts.items()},
    )


def pinned(recipe: Recipe, fetched: dict[str, Any]) -> Recipe:
    """The recipe with the commits that were fetched in the place of branches and tags."""
    commits = {place: found["revision"] for kind in ("models", "texts") for place, found in fetched[kind].items()}
    commits |= {"/model": fetched["model_revision"], "/calibration": fetched["data_revision"]}

    def at(value: Any, pointer: str) -> Any:
        commit = commits.get(pointer)
        return value.model_copy(update={"revision": commit}) if commit and isinstance(value, Frozen) else value

    return rewritten(recipe, at)
