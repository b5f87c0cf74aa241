"""What a recipe that stands for several chains will take: all of its candidates, what they share once.

That is the most: a race stops those that cannot win, and how early is not known before.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optcore.estimate.chain import estimate_chain
from optcore.estimate.document import Estimate, Machine, StageEstimate
from optcore.estimate.facts import ModelFacts
from optcore.estimate.learning import Rates
from optcore.frozen import digest_of
from optcore.plan import fitting
from optcore.recipe import Recipe
from optcore.search.contenders import Contender


def estimate_race(
    recipe: Recipe, facts: ModelFacts, machine: Machine, rates: Rates | None, folder: Path | None = None
) -> Estimate:
    """Of all candidates that can be begun; the problems of one where none can. Raises `RecipeError` for a chain that
    does not fit. Models that candidates name beside the source count as the source."""
    found = [(one, estimate_chain(one.recipe, facts, machine, rates, None, folder)) for one in fitting(recipe)]
    able = [(one, estimate) for one, estimate in found if estimate.fits] or found[:1]
    return Estimate(
        machine=machine,
        stages=tuple(stages_of_all(able)),
        results=able[0][1].results,
        problems=tuple(dict.fromkeys(problem for _, each in able for problem in each.problems)),
    )


def stages_of_all(found: Sequence[tuple[Contender, Estimate]]) -> Iterator[StageEstimate]:
    """Every candidate's stages under its own name, those that several share once."""
    met: set[str] = set()
    for contender, estimate in found:
        for stage in estimate.stages:
            key = digest_of([stage.stage, _behind(contender.recipe, stage.stage)])
            if key not in met:
                met.add(key)
                yield stage.model_copy(update={"stage": f"{contender.name}-{stage.stage}"})


def _behind(recipe: Recipe, stage: str) -> Mapping[str, object]:
    """All that a stage's result depends on: the recipe as far as its entry, its first ones for what fetches."""
    number = int(stage.partition("-")[0])
    whole = recipe.model_dump(mode="json")
    if number > len(recipe.chain):
        return whole
    return {"chain": whole["chain"][:number], **{name: whole[name] for name in ("model", "calibration", "seed")}}
