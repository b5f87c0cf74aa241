"""Whole decoder layers of several models stacked into one, or those of one model more than once."""

import re
from typing import TYPE_CHECKING

from optcore.errors import RecipeError
from optcore.restructure.alike import Alike, check_alike
from optcore.restructure.stack import Taken, is_stack, write_stack
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.merge import Merge

_RUNS = re.compile(r"rope|rotary|sliding_window|position_embedding|attention_multiplier|softcapping")
"""Settings of one model that say how all its layers are run."""


def pass_layers(run: "Run", technique: "Merge") -> None:
    """Write `run.checkpoint` with the layers that the slices name in the place of its own to `run.out`.

    Raises `RecipeError` for layers that are not there, and for a model whose layers depend on their numbers.
    """
    place = run.place
    for at, other in enumerate(run.models):
        field = f"{place}/others/{at}/model"
        _check_runs_alike(check_alike(run.checkpoint, other, field), field)
    models = [Decoder(folder) for folder in (run.checkpoint, *run.models)]
    layers = [taken for at in range(len(technique.slices)) for taken in _taken(technique, at, models, place)]
    write_stack(models[0], layers, run.out, lambda count: run.progress("packing", count, len(layers)))
    if not is_stack(models[0], layers, run.out):
        raise RecipeError(
            f"a {type(models[0].model).__name__} with those layers is another model: what its layers do depends on "
            "their numbers",
            remedy="stack layers of a model in which all are alike, or leave each at its number",
            field=f"{place}/slices",
        )
    run.notice(f"{technique.summary}; the chain's model had {len(models[0])}")
    run.results["merge"] = {"method": technique.method, "models": len(models), "layers": len(layers)}


def _check_runs_alike(found: Alike, field: str) -> None:
    """Refuse layers that would be run by another model's positions or windows than they were trained with."""
    if different := [key for key in found.differing if _RUNS.search(key)]:
        raise RecipeError(
            f"the models' layers are run differently: their {', '.join(different)} are not the same",
            remedy="stack layers of models with the same positions and windows",
            field=field,
        )


def _taken(technique: "Merge", at: int, models: list[Decoder], place: str) -> list[Taken]:
    model, (start, stop) = models[technique.slices[at].model], technique.slices[at].layers
    if stop > len(model):
        raise RecipeError(
            f"a slice ends before layer {stop}, and the model has {len(model)}",
            remedy=f"end it at {len(model)} or earlier",
            field=f"{place}/slices/{at}/layers",
        )
    return [Taken(model, index) for index in range(start, stop)]
