"""Parameters and bytes of a checkpoint in any shape, counted from names and shapes: nothing is read or written."""

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from optcore.restructure.depth import may_go
from optcore.restructure.stack import numbered

if TYPE_CHECKING:
    from optcore.restructure.shapes import Grid, Shape
    from optcore.streaming.decoder import Decoder
    from optcore.streaming.names import Source
    from optcore.techniques.prune import Prune


class Size(NamedTuple):
    """What tensors amount to."""

    params: int = 0
    bytes: int = 0

    def plus(self, other: "Size") -> "Size":
        """Both together."""
        return Size(self.params + other.params, self.bytes + other.bytes)


class Counter:
    """The size of every shape of a grid: what writing it would give, to the parameter.

    Where layers differ in size, the smallest ones count as left out, so whichever go, the result is no larger.
    """

    def __init__(self, decoder: "Decoder", technique: "Prune", grid: "Grid") -> None:
        self._decoder, self._grid = decoder, grid
        self._may_go = may_go(len(decoder), technique)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in decoder.model.state_dict().items()}
        self._filled: dict[str, list[tuple[str, Source]]] = {}
        for name, source in decoder.names.sources.items():
            if name in self._shapes:
                self._filled.setdefault(source.stored, []).append((name, source))
        self._by_layer = cache(self._counted)

    def size(self, shape: "Shape") -> Size:
        """Of the checkpoint's tensors in this shape."""
        cuts = tuple((axis, ratio) for axis, ratio in shape._asdict().items() if ratio and axis != "depth")
        layers = self._by_layer(cuts)
        going = sorted(self._may_go, key=lambda index: layers.get(index, Size()))[: shape.depth]
        beyond = {index for index in layers if shape.depth and index >= len(self._decoder)}
        total = Size()
        for index, size in layers.items():
            if index not in going and index not in beyond:
                total = total.plus(size)
        return total

    def _counted(self, cuts: tuple[tuple[str, float], ...]) -> dict[int, Size]:
        """By layer; -1 for what is in none."""
        fewer, place, reader = self._fewer(cuts), numbered(self._decoder), self._decoder.reader
        found: dict[int, Size] = {}
        for stored in reader.names:
            params = self._params(stored, fewer)
            width = reader.nbytes(stored) // max(1, math.prod(reader.shape(stored)))
            match = place.fullmatch(stored)
            index = int(match["number"]) if match else -1
            found[index] = found.get(index, Size()).plus(Size(params, params * width))
        return found

    def _params(self, stored: str, fewer: dict[str, dict[int, int]]) -> int:
        """Elements of a stored tensor; one that no module takes is not written once anything is cut."""
        targets = self._filled.get(stored, [])
        if not targets:
            return 0 if fewer else math.prod(self._decoder.reader.shape(stored))
        parts = targets if targets[0][1].part else targets[:1]  # others are tied to the first
        return sum(_elements(self._shapes[name], fewer.get(name, {})) for name, _ in parts)

    def _fewer(self, cuts: tuple[tuple[str, float], ...]) -> dict[str, dict[int, int]]:
        """By parameter and dimension, how many entries go."""
        found: dict[str, dict[int, int]] = {}
        for unit in (unit for cut in cuts for unit in self._grid.plans[cut].units):
            for place in unit.places:
                gone = place.block * place.copies * (unit.parts - unit.keeps)
                dimensions = found.setdefault(place.parameter, {})
                dimensions[place.dimension] = dimensions.get(place.dimension, 0) + gone
        return found


def _elements(shape: tuple[int, ...], fewer: dict[int, int]) -> int:
    return math.prod(size - fewer.get(dimension, 0) for dimension, size in enumerate(shape))
