"""Whole decoder layers of several models stacked into one, or those of one model more than once."""

from typing import TYPE_CHECKING

from optcore.errors import RecipeError
from optcore.restructure.alike import check_alike
from optcore.restructure.stack import Taken, is_stack, write_stack
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.merge import Merge


def pass_layers(run: "Run", technique: "Merge") -> None:
    """Write `run.checkpoint` with the layers that the slices name in the place of its own to `run.out`.

    Raises `RecipeError` for layers that are not there, and for a model whose layers depend on their numbers.
    """
    place = run.place
    for at, other in enumerate(run.models):
        check_alike(run.checkpoint, other, f"{place}/others/{at}/model")
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


def _taken(technique: "Merge", at: int, models: list[Decoder], place: str) -> list[Taken]:
    model, (start, stop) = models[technique.slices[at].model], technique.slices[at].layers
    if stop > len(model):
        raise RecipeError(
            f"a slice ends before layer {stop}, and the model has {len(model)}",
            remedy=f"end it at {len(model)} or earlier",
            field=f"{place}/slices/{at}/layers",
        )
    return [Taken(model, index) for index in range(start, stop)]
