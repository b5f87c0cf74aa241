"""Which share of each part of a model stays within a budget: the exact choice, and the equal one it must beat."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from optcore.algorithms.allocation import Option, allocate


class Costed(Protocol):
    """A part of a model; share 1 is all of it."""

    def cost(self, share: float) -> int:
        """What that share of it takes from the budget; more for a larger share."""


def least(parts: Sequence[Costed], scores: Sequence[Mapping[float, float]], budget: int) -> list[float]:
    """By part, the share that stays: the least total score with costs of at most `budget`.

    `scores[part]` has one for each share that may be chosen. Raises `RecipeError` where the cheapest cost more.
    """
    options = [
        [Option(part.cost(share), score) for share, score in of_part.items()]
        for part, of_part in zip(parts, scores, strict=True)
    ]
    chosen = allocate(options, budget)
    return [list(of_part)[place] for of_part, place in zip(scores, chosen, strict=True)]


def equal(ffn: Sequence[Costed], others: Sequence[Costed], steps: int, budget: int) -> tuple[float, int]:
    """The largest share, in so many steps, that all `ffn` parts can keep, and how many of `others` stay whole.

    Others go only where even share 0 costs too much, the last ones first; the budget must allow that.
    """
    whole = sum(part.cost(1) for part in others)
    for step in range(steps, -1, -1):
        if sum(part.cost(step / steps) for part in ffn) + whole <= budget:
            return step / steps, len(others)
    left = budget - sum(part.cost(0) for part in ffn)
    return 0.0, max(count for count in range(len(others)) if sum(part.cost(1) for part in others[:count]) <= left)
