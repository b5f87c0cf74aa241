"""One option for each group, with the least total score that a budget allows: the multiple-choice knapsack, exactly.

A dynamic program over the Pareto frontier of (cost, score). Two rules keep the frontier short and cost no exactness:
a state that costs more and scores no better than another goes (dominance, Kellerer, Pferschy and Pisinger, "Knapsack
Problems", 2004, chapter 11), and so does one whose best conceivable completion, by the linear relaxation of the groups
still open, is worse than an assignment already known. Corners of that relaxation are assignments themselves, so good
ones are known from the first group on.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import numpy as np

from optcore.errors import RecipeError

# Sums of some hundred scores differ by this share of their magnitudes with the order of addition, in float64. States so
# close to the bound are kept.
_ROUNDING = 1e-12


class Option(NamedTuple):
    """A choice for one group."""

    cost: int
    """What it takes from the budget, such as bits."""
    score: float
    """What it adds to the total to minimise."""


class _Curve(NamedTuple):
    """Least score of some groups by what they may spend, relaxed to a convex polyline through assignments."""

    costs: np.ndarray
    scores: np.ndarray


class _Frontier(NamedTuple):
    """States after some groups: costs rise, scores fall. `parents` and `choices` lead back to how each was reached."""

    costs: np.ndarray
    scores: np.ndarray
    parents: np.ndarray
    choices: np.ndarray


def allocate(groups: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The index of the option that each group gets: the least sum of scores with a sum of costs of at most `budget`.

    Raises `RecipeError` when the cheapest options together cost more than that.
    """
    floors = [min(option.cost for option in options) for options in groups]
    if sum(floors) > budget:
        raise RecipeError(
            f"the budget is {budget}, and the cheapest options cost {sum(floors)}", remedy="raise the budget"
        )
    open_, unit = _scaled(groups, floors)
    room = (budget - sum(floors)) // unit
    best, noise = float("inf"), _ROUNDING * sum(max(abs(o.score) for o in options) for options in groups)
    start = np.zeros(1, dtype=np.int64)
    frontiers = [_Frontier(start, start.astype(np.float64), start, start)]
    for options, rest in zip(open_, _curves(open_)[1:], strict=True):
        frontier, best = _pruned(_extended(frontiers[-1], options), rest, room, best, noise)
        frontiers.append(frontier)
    return _choices(frontiers)


def _scaled(groups: Sequence[Sequence[Option]], floors: list[int]) -> tuple[list[list[Option]], int]:
    """Costs above each group's cheapest, in their greatest common unit."""
    extra = [[o.cost - floor for o in options] for options, floor in zip(groups, floors, strict=True)]
    unit = gcd(*(cost for costs in extra for cost in costs)) or 1
    scaled = [
        [Option(cost // unit, option.score) for cost, option in zip(costs, options, strict=True)]
        for costs, options in zip(extra, groups, strict=True)
    ]
    return scaled, unit


def _curves(groups: list[list[Option]]) -> list[_Curve]:
    """For each position, the relaxed curve of the groups from there on; the last is that of no group."""
    base, steps = 0.0, np.empty((0, 2))
    curves = [_curve(base, steps)]
    for options in reversed(groups):
        corners = _hull(options)
        base += corners[0].score
        own = [(right.cost - left.cost, right.score - left.score) for left, right in pairwise(corners)]
        steps = np.concatenate([steps, np.array(own).reshape(-1, 2)])
        curves.append(_curve(base, steps))
    return curves[::-1]


def _curve(base: float, steps: np.ndarray) -> _Curve:
    """The greedy walk: the steps that lower the score most for their cost come first."""
    order = np.argsort(steps[:, 1] / steps[:, 0], kind="stable")
    costs, scores = np.cumsum(steps[order], axis=0).T
    return _Curve(np.concatenate([[0.0], costs]), base + np.concatenate([[0.0], scores]))


def _hull(options: list[Option]) -> list[Option]:
    """Options on the lower convex hull, from the cheapest to the best score."""
    corners: list[Option] = []
    for option in sorted(options):
        if corners and option.score >= corners[-1].score:
            continue
        while len(corners) > 1 and _is_above(corners[-2], corners[-1], option):
            corners.pop()
        corners.append(option)
    return corners


def _is_above(left: Option, middle: Option, right: Option) -> bool:
    """Whether the middle one is on or above the line between its neighbours."""
    rise = (middle.score - left.score) * (right.cost - left.cost)
    return rise >= (right.score - left.score) * (middle.cost - left.cost)


def _extended(frontier: _Frontier, options: list[Option]) -> _Frontier:
    """Every state with every option."""
    count, choices = len(frontier.costs), np.arange(len(options))
    return _Frontier(
        np.concatenate([frontier.costs + option.cost for option in options]),
        np.concatenate([frontier.scores + option.score for option in options]),
        np.tile(np.arange(count), len(options)),
        np.repeat(choices, count),
    )


def _pruned(states: _Frontier, rest: _Curve, room: int, best: float, noise: float) -> tuple[_Frontier, float]:
    """The states that may lead to the optimum, and the best total of a complete assignment known by now."""
    states = _chosen(states, states.costs <= room)
    left = room - states.costs
    corner = np.searchsorted(rest.costs, left, side="right") - 1
    best = min(best, float((states.scores + rest.scores[corner]).min()))
    bound = states.scores + np.interp(left, rest.costs, rest.scores)
    states = _chosen(states, bound <= best + noise)
    states = _chosen(states, np.lexsort((states.scores, states.costs)))
    before = np.concatenate([[np.inf], np.minimum.accumulate(states.scores)[:-1]])
    return _chosen(states, states.scores < before), best


def _chosen(states: _Frontier, which: np.ndarray) -> _Frontier:
    return _Frontier(*(column[which] for column in states))


def _choices(frontiers: list[_Frontier]) -> list[int]:
    """Walk back from the best final state, which is the last."""
    state, choices = len(frontiers[-1].costs) - 1, []
    for frontier in reversed(frontiers[1:]):
        choices.append(int(frontier.choices[state]))
        state = int(frontier.parents[state])
    return choices[::-1]
