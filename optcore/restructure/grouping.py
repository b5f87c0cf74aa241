"""Whether a format's groups divide what pruning will leave, and targets hold it: asked before work would be lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from optcore.calibration.assignment import Assignment, unfit_group
from optcore.errors import RecipeError
from optcore.export.base import Export
from optcore.restructure.width_plan import planned
from optcore.schemes import Scheme
from optcore.streaming.decoder import Decoder
from optcore.streaming.match import time_limit
from optcore.streaming.simulate import module_paths
from optcore.streaming.skeleton import layers_of
from optcore.targets import belongs

if TYPE_CHECKING:
    from optcore.stage import Grouping


class _Shape(NamedTuple):
    """Of a linear layer, outputs and inputs: in the model, and in what the chain makes of it."""

    before_NK: tuple[int, int]
    after_NK: tuple[int, int]


def check_grouping(model: Path, grouping: "Grouping", scratch: Path) -> None:
    """Refuse what `ptq` would, once it is its turn, and the writers of targets after it: nothing else, so a layer whose
    size depends on which ones go is left to them. Raises `RecipeError`, also for what `prune` would refuse."""
    shapes, main = _shapes(Decoder(model), grouping, scratch), grouping.ptq.scheme
    for scheme in (main, *grouping.ptq.also):
        assignment = Assignment(scheme, grouping.ptq)
        with time_limit():
            formats = {name: found for name in shapes if (found := assignment[name])}
        for name, found in formats.items():
            _check_groups(name, shapes[name], found, grouping.place)
        for place, export in grouping.exports.items():
            if scheme == main or belongs(scheme, export):
                _check_export(place, export, shapes, formats)


def _shapes(decoder: Decoder, grouping: "Grouping", scratch: Path) -> dict[str, _Shape]:
    """Of each linear layer that is known to be in what `ptq` will read, by its name there."""
    cut = next((one for one in grouping.prunes if one.sliced), None)
    narrowed = planned(decoder, cut, scratch).skeleton if cut else decoder.model
    assert narrowed is not None
    layers = [
        {
            path: _Shape(_shape(layer.get_submodule(path)), _shape(narrower.get_submodule(path)))
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


def _shape(linear: nn.Module) -> tuple[int, int]:
    rows, columns = linear.get_parameter("weight").shape
    return rows, columns


def _check_export(place: str, export: Export, shapes: Mapping[str, _Shape], formats: Mapping[str, Scheme]) -> None:
    for name, scheme in formats.items():
        if scheme.name in export.sized_schemes:
            export.check_linear(name, scheme, shapes[name].after_NK, place)


def _check_groups(name: str, shape: _Shape, scheme: Scheme, place: str) -> None:
    (_, before), (_, inputs) = shape
    size = unfit_group(inputs, scheme)
    if size is None:
        return
    is_cut = inputs != before
    fit = (
        f"let a multiple of {size} stay (`multiple: {size}` of `prune` for a ratio)" if is_cut else "add it to `ignore`"
    )
    has = "will be left with" if is_cut else "has"
    raise RecipeError(
        f"{name} {has} {inputs} inputs, which groups of {size} do not divide",
        remedy=f"{fit}, or choose a scheme with smaller groups than {scheme.name}",
        field=place,
    )
