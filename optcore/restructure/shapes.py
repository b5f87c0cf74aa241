"""Shapes that a model can be cut to: the grid of them, and those of it worth a look."""

from bisect import bisect_left
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from optcore.errors import RecipeError
from optcore.restructure.depth import may_go
from optcore.restructure.width_plan import Plan, planned
from optcore.techniques.prune import Cut

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder
    from optcore.techniques.prune import Prune

WIDTHS = ("hidden", "heads", "ffn")


class Shape(NamedTuple):
    """How much goes of each axis."""

    depth: int = 0
    """Layers."""
    hidden: float = 0.0
    """Shares, as in `Cut.ratio`."""
    heads: float = 0.0
    ffn: float = 0.0

    def contains(self, other: "Shape") -> bool:
        """Whether a model of this shape has all that one of the other shape has."""
        return all(own <= theirs for own, theirs in zip(self, other, strict=True))

    def asked(self, technique: "Prune") -> "Prune":
        """The pruning that names these cuts where `technique` names a target."""
        widths = {axis: Cut(ratio=getattr(self, axis)) for axis in WIDTHS}
        return technique.model_copy(update={"target": None, "depth": self.depth, **widths})


class Grid(NamedTuple):
    """What is tried along each axis, in rising order of what goes, nothing first."""

    depth: list[int]
    hidden: list[float]
    heads: list[float]
    ffn: list[float]
    plans: dict[tuple[str, float], Plan]
    """What each cut of one width alone changes."""

    @property
    def largest(self) -> Shape:
        """The whole model."""
        return Shape()

    @property
    def smallest(self) -> Shape:
        """The most of everything taken away."""
        return Shape(self.depth[-1], self.hidden[-1], self.heads[-1], self.ffn[-1])


def grid_of(run: "Run", decoder: "Decoder", technique: "Prune") -> Grid:
    """Ask the model's family for every cut; an axis that it cannot lose stays whole, and a notice says why."""
    search, plans = technique.search, dict[tuple[str, float], Plan]()
    most = min(int(search.most_depth * len(decoder)), len(may_go(len(decoder), technique)), len(decoder) - 1)
    depths = _even(most, search.depth)
    widths: dict[str, list[float]] = {}
    for axis in WIDTHS:
        widths[axis] = [0.0]
        ratios = [round(ratio, 6) for ratio in _even(search.most_width, getattr(search, axis))]
        seen: list[object] = []
        try:
            for ratio in filter(None, ratios):
                alone = {"target": None, "compensate": False, axis: Cut(ratio=ratio)}
                plan = planned(decoder, technique.model_copy(update=alone), run.scratch)
                is_cut = any(before != after for before, after in plan.sizes.values())
                if is_cut and plan.sizes not in seen:  # neighbours can round to one size
                    seen.append(plan.sizes)
                    plans[axis, ratio] = plan
                    widths[axis].append(ratio)
        except RecipeError as error:
            widths[axis] = [0.0]
            run.notice(f"`{axis}` stays whole in the search: {error.message}")
    return Grid(sorted({round(depth) for depth in depths}), **widths, plans=plans)


def _even(most: float, steps: int) -> list[float]:
    return [0.0, *(most * step / steps for step in range(1, steps + 1))]


def meeting(grid: Grid, cost: Callable[[Shape], float], limit: float) -> list[Shape]:
    """Shapes of the grid that cost at most `limit`, but for those that another of them contains.

    `cost` must fall along each axis: only the widest feed-forward networks that meet the limit are looked for, by
    bisection, for each choice of the other axes.
    """
    found: list[Shape] = []
    for depth, hidden, heads in product(grid.depth, grid.hidden, grid.heads):
        shapes = [Shape(depth, hidden, heads, ffn) for ffn in grid.ffn]
        place = bisect_left(shapes, True, key=lambda shape: cost(shape) <= limit)
        found += shapes[place : place + 1]
    return [shape for shape in found if not any(other.contains(shape) for other in found if other != shape)]
