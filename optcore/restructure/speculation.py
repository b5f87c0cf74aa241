"""What the exits are worth without a loss: drafts for self-speculative decoding (LayerSkip, 4.3)."""

from collections.abc import Mapping
from typing import NamedTuple

_MOST_drafted = 12


class Draft(NamedTuple):
    """A way to draft: so many tokens by the first layers, then all of them verified by the whole model at once."""

    exit: int
    """Layers computed."""
    tokens: int
    speedup: float
    """Tokens a pass of the whole model's time; below 1 drafting costs more than it saves."""


def tokens_a_pass(acceptance: float, drafted: int) -> float:
    """Tokens that a verification leaves in the mean, its own one counted in: 1 + a + a^2 + ... + a^K, where each of K
    drafted tokens is accepted with probability a if all before it were (Leviathan et al., arXiv:2211.17192, eq. 1)."""
    return sum(acceptance**place for place in range(drafted + 1))


def best_draft(acceptance: Mapping[int, float], layers: int) -> Draft:
    """The exit E and the K drafted tokens of the largest tau / (1 + K E / L), by the acceptance of each exit."""
    drafts = (
        Draft(depth, drafted, tokens_a_pass(share, drafted) / (1 + drafted * depth / layers))
        for depth, share in acceptance.items()
        for drafted in range(1, _MOST_drafted + 1)
    )
    return max(drafts, key=lambda draft: draft.speedup)
