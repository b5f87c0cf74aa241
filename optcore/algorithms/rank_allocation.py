"""Which rank each matrix of a model gets, within a number of parameters.

A matrix [N, K] of rank r has r (N + K) parameters as two factors. From r = N K / (N + K) on that saves nothing, and the
matrix is better left whole: that is one more choice, which costs N K and loses nothing.
"""

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from optcore.errors import RecipeError


class Shape(NamedTuple):
    """Of a weight."""

    outputs: int
    inputs: int

    @property
    def parameters(self) -> int:
        """As one matrix."""
        return self.outputs * self.inputs

    @property
    def per_rank(self) -> int:
        """Parameters that one more rank costs."""
        return self.outputs + self.inputs

    def largest(self, multiple: int) -> int:
        """The largest rank, a multiple, that has fewer parameters than the matrix; 0 where there is none."""
        return (self.parameters - 1) // self.per_rank // multiple * multiple

    def count(self, rank: int | None) -> int:
        """Parameters at a rank; None is the matrix itself."""
        return self.parameters if rank is None else rank * self.per_rank


Ranks = dict[str, int | None]
"""By name of the matrix; None leaves it whole."""


class _Step(NamedTuple):
    """From one choice to the next dearer one."""

    rank: int | None
    cost: int
    gain: float

    @property
    def worth(self) -> float:
        return self.gain / self.cost


def check_budget(shapes: Mapping[str, Shape], keep: float, multiple: int) -> None:
    """Raise `RecipeError` where not even the smallest ranks fit into `keep` of all parameters."""
    total = sum(shape.parameters for shape in shapes.values())
    least = sum(shape.count(_smallest(shape, multiple)) for shape in shapes.values())
    if least > keep * total:
        raise RecipeError(
            f"`keep` {keep:g} is too small: with the smallest ranks {least / total:.3g} of the parameters are left",
            remedy="keep more, choose a smaller `multiple`, or `ignore` layers that cannot get smaller",
            field="/chain",
        )


def uniform_ranks(shapes: Mapping[str, Shape], keep: float, multiple: int) -> Ranks:
    """The same share of every matrix, rounded down to a multiple; None where that saves nothing."""
    return {name: _uniform(shape, keep, multiple) for name, shape in shapes.items()}


def global_ranks(shapes: Mapping[str, Shape], spectra: Mapping[str, torch.Tensor], keep: float, multiple: int) -> Ranks:
    """Ranks with about the least loss of energy for `keep` of all parameters together, never more.

    Components (singular values `spectra`, falling) are taken greedily, the one with the largest share of its matrix'
    energy per parameter first. The energy is that behind the first `multiple` components, which every matrix keeps: a
    single direction that all inputs have in common would otherwise hide what tells them apart. Leaving a matrix whole
    competes as one step with all that it adds; as such a step may not fit, what is found without it is taken where that
    loses less. Raises `RecipeError` like `check_budget`.
    """
    check_budget(shapes, keep, multiple)
    points = {
        name: _points(shape, spectra[name], multiple) for name, shape in shapes.items() if shape.largest(multiple)
    }
    fixed = sum(shape.parameters for name, shape in shapes.items() if name not in points)
    budget = int(keep * sum(shape.parameters for shape in shapes.values())) - fixed
    found = min((_greedy(points, budget, whole=whole) for whole in (True, False)), key=lambda own: _lost(points, own))
    return {name: found.get(name) for name in shapes}


def _greedy(points: "Mapping[str, Sequence[_Point]]", budget: int, *, whole: bool) -> Ranks:
    """Along the hulls, then rank by rank with what is left; `whole`: a matrix may be left as it is."""
    ranks: Ranks = {name: own[0].rank for name, own in points.items()}
    left = budget - sum(own[0].cost for own in points.values())
    if whole:
        left = _take({name: _steps(_hull(own)) for name, own in points.items()}, ranks, left)
    _take({name: _steps(_after(own, ranks[name])) for name, own in points.items()}, ranks, left)
    return ranks


def _lost(points: "Mapping[str, Sequence[_Point]]", ranks: Ranks) -> float:
    return sum(1 - point.kept for name, own in points.items() for point in own if point.rank == ranks[name])


def _smallest(shape: Shape, multiple: int) -> int | None:
    return multiple if shape.largest(multiple) else None


def _uniform(shape: Shape, keep: float, multiple: int) -> int | None:
    rank = max(int(keep * shape.parameters / shape.per_rank) // multiple * multiple, multiple)
    return rank if keep < 1 and rank <= shape.largest(multiple) else None


class _Point(NamedTuple):
    rank: int | None
    cost: int
    kept: float
    """Share of the energy."""


def _points(shape: Shape, spectrum_R: torch.Tensor, multiple: int) -> list[_Point]:
    """Every choice, the cheapest first."""
    kept_R = spectrum_R.double().square().cumsum(0) - spectrum_R[:multiple].double().square().sum()
    kept_R = kept_R / kept_R[-1] if kept_R[-1] > 0 else torch.ones_like(kept_R)
    ranks = range(multiple, shape.largest(multiple) + 1, multiple)
    kept = kept_R[[rank - 1 for rank in ranks]].tolist()
    found = [_Point(rank, shape.count(rank), share) for rank, share in zip(ranks, kept, strict=True)]
    return [*found, _Point(None, shape.parameters, 1.0)]


def _hull(points: Sequence[_Point]) -> list[_Point]:
    """Points that no line between two others passes over."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: _Point, second: _Point) -> float:
    return (second.kept - first.kept) / (second.cost - first.cost)


def _after(points: Sequence[_Point], rank: int | None) -> list[_Point]:
    """The ranks from the one that was chosen on."""
    return [point for point in points if rank is not None and point.rank is not None and point.rank >= rank]


def _steps(points: Sequence[_Point]) -> list[_Step]:
    return [_Step(after.rank, after.cost - before.cost, after.kept - before.kept) for before, after in pairwise(points)]


def _take(steps: Mapping[str, Sequence[_Step]], ranks: Ranks, left: int) -> int:
    """Take the best step that is next for its matrix, until none fits; returns what is left of the budget."""
    waiting = [(-own[0].worth, name, 0) for name, own in steps.items() if own]
    heapq.heapify(waiting)
    while waiting:
        _, name, number = heapq.heappop(waiting)
        step = steps[name][number]
        if step.cost > left:
            continue
        ranks[name], left = step.rank, left - step.cost
        if number + 1 < len(steps[name]):
            heapq.heappush(waiting, (-steps[name][number + 1].worth, name, number + 1))
    return left
