"""Weighted k-means in one dimension: the L numbers that stand for many with the least weighted squared error.

Legend: E elements, U distinct values (ascending), L levels, B bins. In one dimension clusters are intervals, so prefix
sums give the cost of any of them and a step of Lloyd's costs L searches, however many elements there are.
"""

from typing import NamedTuple

import torch

_BINS = 256
"""Points that the exact search is done on: all of them where there are no more."""
_MOST_searched = 16
"""Levels up to which it is done: its cost is B^2 L, and with many levels the asymptotically best start is as good."""
_STEPS = 500


class Points(NamedTuple):
    """What the elements are to k-means: each distinct value once, with the weight of all that have it."""

    values_U: torch.Tensor
    """Ascending, float64."""
    weights_U: torch.Tensor
    """Greater than 0, float64."""
    places_E: torch.Tensor
    """Which value each element has."""


def points(values_E: torch.Tensor, weights_E: torch.Tensor | None = None) -> Points:
    """Distinct values of elements; 16-bit weights have few. Weights must be greater than 0; None: all the same."""
    values_U, places_E = values_E.unique(return_inverse=True)
    weights_E = torch.ones_like(places_E) if weights_E is None else weights_E
    weights_U = torch.zeros(len(values_U), dtype=torch.float64, device=values_E.device)
    return Points(values_U.double(), weights_U.index_add_(0, places_E, weights_E.double()), places_E)


def kmeans(found: Points, levels: int) -> torch.Tensor:
    """The levels [L], ascending, float64. No random choice is made.

    As many distinct values or fewer come back as they are, the largest one repeated. Up to 16 levels begin from the
    optimum of 256 bins (dynamic programming: Wang and Song, Ckmeans.1d.dp, R Journal 3/2, 2011), which for 256 values
    or fewer is the optimum itself; more begin where high-resolution theory has them (Panter and Dite, 1951).
    """
    values_U, count = found.values_U, len(found.values_U)
    if count <= levels:
        return torch.cat([values_U, values_U[-1:].expand(levels - count)])
    sums = _Sums(found)
    if levels > _MOST_searched:
        start_L = _interval_means(sums, _split(sums, _companded(found, levels), levels), levels)
    else:
        cuts = torch.arange(1, count) if count <= _BINS else _companded(found, _BINS)
        start_L = _optimal(sums, cuts.to(values_U.device), levels)
    return lloyd(found, start_L)


def lloyd(found: Points, levels_L: torch.Tensor, steps: int = _STEPS) -> torch.Tensor:
    """Levels [L] moved to the means of the values nearest to them until none changes (Lloyd, 1957; at most `steps`)."""
    sums, before = _Sums(found), torch.empty(0)
    for _ in range(steps):
        cuts = torch.searchsorted(found.values_U, _midpoints(levels_L))
        if torch.equal(cuts, before):
            break
        before, levels_L = cuts, sums.means(cuts, levels_L)
    return levels_L


def uniform_levels(found: Points, levels: int) -> torch.Tensor:
    """Levels [L] equally far from each other, from the least value to the largest."""
    low, high = (float(found.values_U[place]) for place in (0, -1))
    return torch.linspace(low, high, levels, dtype=torch.float64, device=found.values_U.device)


def assigned(found: Points, levels_L: torch.Tensor) -> torch.Tensor:
    """Index [E], uint8, of the level nearest to each element; L <= 256, ascending."""
    nearest_U = torch.searchsorted(_midpoints(levels_L.double()), found.values_U)
    return nearest_U.to(torch.uint8)[found.places_E]


def squared_error(found: Points, levels_L: torch.Tensor) -> float:
    """Weighted sum of squared distances to the nearest level."""
    nearest_U = torch.searchsorted(_midpoints(levels_L.double()), found.values_U)
    return float((found.weights_U * (found.values_U - levels_L.double()[nearest_U]).square()).sum())


class _Sums:
    """Moments of any interval of values from their prefix sums. Values are centred, so that squares cancel less."""

    def __init__(self, found: Points) -> None:
        weights = found.weights_U
        self._centre = (weights * found.values_U).sum() / weights.sum()
        values = found.values_U - self._centre
        moments = torch.stack([weights, weights * values, weights * values.square()])
        self._prefix = torch.cat([torch.zeros_like(moments[:, :1]), moments.cumsum(1)], 1)
        self.count = len(values)

    def means(self, cuts: torch.Tensor, otherwise_L: torch.Tensor) -> torch.Tensor:
        """Mean of each of the L intervals between ascending cuts [L - 1]; an empty one has what it had."""
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), self.count)])
        mass_L, first_L, _ = self._prefix[:, edges].diff(dim=1)
        mean_L = first_L / mass_L.clamp(min=torch.finfo(torch.float64).tiny) + self._centre
        return torch.where(edges.diff() > 0, mean_L, otherwise_L)

    def errors(self, edges: torch.Tensor) -> torch.Tensor:
        """Squared error [B] of each interval between neighbouring edges [B + 1] about its mean."""
        mass, first, second = self._prefix[:, edges].diff(dim=1)
        return (second - first.square() / mass.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0)

    def middle(self, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Where half of the weight between two edges lies on either side, at least a value from both."""
        mass = self._prefix[0]
        place = torch.searchsorted(mass, (mass[begin] + mass[end]) / 2)
        return place.clamp(begin + 1, end - 1)

    def costs(self, edges: torch.Tensor) -> torch.Tensor:
        """Squared error [B + 1, B + 1] of the interval from one edge to a later one about its mean; else infinite."""
        mass, first, second = self._prefix[:, edges][:, None, :] - self._prefix[:, edges][:, :, None]
        error = (second - first.square() / mass.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0)
        return error.masked_fill_(edges[:, None] >= edges[None, :], torch.inf)


def _optimal(sums: _Sums, cuts: torch.Tensor, levels: int) -> torch.Tensor:
    """The best levels [L] whose intervals end at some of the cuts: best[m][j] = min_i best[m - 1][i] + cost[i, j]."""
    edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), sums.count)])
    cost_ji = sums.costs(edges).T.contiguous()  # the minimum is taken along what lies together
    best, begins = cost_ji[:, 0], []
    for _ in range(levels - 1):
        best, begin = (best + cost_ji).min(1)
        begins.append(begin)
    place, chosen = len(edges) - 1, []
    for begin in reversed(begins):
        place = int(begin[place])
        chosen.append(place)
    return _interval_means(sums, edges[chosen[::-1]], levels)


def _companded(found: Points, bins: int) -> torch.Tensor:
    """Cuts [< B] between which the density of values to the power 1/3 has the same integral: where optimal levels are
    when there are many."""
    share_U = found.weights_U.pow(1 / 3) * torch.cat([found.values_U.diff(), found.values_U.new_zeros(1)]).pow(2 / 3)
    reached_U = share_U.cumsum(0)
    wanted = reached_U[-1] * torch.arange(1, bins, device=reached_U.device, dtype=torch.float64) / bins
    return torch.searchsorted(reached_U, wanted).clamp(1, len(reached_U) - 1).unique()


def _split(sums: _Sums, cuts: torch.Tensor, levels: int) -> torch.Tensor:
    """The cuts, and as many more as make L intervals: where some values lie far out, many cuts fall on one place.

    The interval of the largest error is cut at the middle of its weight; there are more distinct values than levels.
    """
    while len(cuts) < levels - 1:
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), sums.count)])
        widest = int(sums.errors(edges).masked_fill(edges.diff() < 2, -1).argmax())
        cuts = torch.cat([cuts[:widest], sums.middle(edges[widest], edges[widest + 1])[None], cuts[widest:]])
    return cuts


def _interval_means(sums: _Sums, cuts: torch.Tensor, levels: int) -> torch.Tensor:
    """Means between the cuts, [L]; fewer intervals than levels give some twice."""
    means = sums.means(cuts, torch.zeros(len(cuts) + 1, dtype=torch.float64, device=cuts.device))
    return torch.cat([means, means[-1:].expand(levels - len(means))])


def _midpoints(levels_L: torch.Tensor) -> torch.Tensor:
    return (levels_L[1:] + levels_L[:-1]) / 2
