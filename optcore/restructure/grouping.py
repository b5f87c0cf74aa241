"""Whether a format's groups divide what pruning will leave: asked before the work that a late answer would lose."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from optcore.calibration.assignment import Assignment, unfit_group
from optcore.errors import RecipeError
from optcore.restructure.width_plan import planned
from optcore.schemes import Scheme
from optcore.streaming.decoder import Decoder
from optcore.streaming.match import time_limit
from optcore.streaming.simulate import module_paths
from optcore.streaming.skeleton import layers_of

if TYPE_CHECKING:
    from optcore.stage import Grouping


class _Inputs(NamedTuple):
    """Of a linear layer: in the model, and in what the chain makes of it."""

    before: int
    after: int


def check_grouping(model: Path, grouping: "Grouping", scratch: Path) -> None:
    """Refuse what `ptq` would, once it is its turn: nothing else, so a layer whose size depends on which ones go is
    left to it. Raises `RecipeError`, also for what `prune` would refuse."""
    inputs = _inputs(Decoder(model), grouping, scratch)
    for scheme in (grouping.ptq.scheme, *grouping.ptq.also):
        assignment = Assignment(scheme, grouping.ptq)
        with time_limit():
            formats = {name: assignment[name] for name in inputs}
        for name, found in formats.items():
            if found:
                _check(name, inputs[name], found, grouping.place)


def _inputs(decoder: Decoder, grouping: "Grouping", scratch: Path) -> dict[str, _Inputs]:
    """Of each linear layer that is known to be in what `ptq` will read, by its name there."""
    cut = next((one for one in grouping.prunes if one.sliced), None)
    narrowed = planned(decoder, cut, scratch).skeleton if cut else decoder.model
    assert narrowed is not None
    layers = [
        {
            path: _Inputs(layer.get_submodule(path).in_features, narrower.get_submodule(path).in_features)
            for path in module_paths(decoder, index, layer)
        }
        for index, (layer, narrower) in enumerate(zip(decoder.layers, layers_of(narrowed)[1], strict=True))
    ]
    left = len(layers) - sum(one.depth for one in grouping.prunes)
    return {
        name: layers[index][path]
        for index in range(left)
        for path, name in module_paths(decoder, index, decoder.layers[index]).items()
        # any layer may be the one that gets this number once others are gone
        if left == len(layers) or all(one.get(path) == layers[index][path] for one in layers)
    }


def _check(name: str, inputs: _Inputs, scheme: Scheme, place: str) -> None:
    size = unfit_group(inputs.after, scheme)
    if size is None:
        return
    is_cut = inputs.after != inputs.before
    fit = (
        f"let a multiple of {size} stay (`multiple: {size}` of `prune` for a ratio)" if is_cut else "add it to `ignore`"
    )
    has = "will be left with" if is_cut else "has"
    raise RecipeError(
        f"{name} {has} {inputs.after} inputs, which groups of {size} do not divide",
        remedy=f"{fit}, or choose a scheme with smaller groups than {scheme.name}",
        field=place,
    )
