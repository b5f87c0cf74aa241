"""How many tokens a pass of the target leaves with a draft, and how sure that is.

No torch.
"""

from math import hypot

from optcore.frozen import Frozen


class Interval(Frozen):
    """What a value lies in, with 95 % confidence."""

    low: float
    high: float


class AcceptanceLength(Frozen):
    """Of one draft, on one set of texts."""

    tau: float
    """Tokens a pass of the target: the accepted ones and its own."""
    interval: Interval
    """Of tau, over prompts."""

    def differs_from(self, other: "AcceptanceLength") -> bool:
        """Whether two measurements are further apart than chance leaves 95 in 100 of equal drafts.

        The squares of the errors add up, on the sides that face each other (Zou and Donner 2008, MOVER).
        """
        lower, higher = sorted((self, other), key=lambda one: one.tau)
        return higher.tau - lower.tau > hypot(lower.interval.high - lower.tau, higher.tau - higher.interval.low)
