"""Texts that go round in circles, as those of small models do which always take the likeliest token.

Any draft may guess those, and n-grams above all, so they make an acceptance length look better than it is.
"""

from collections.abc import Sequence

LONGEST_PERIOD_tokens = 32
_TURNS = 3


def loops(tokens: Sequence[int]) -> bool:
    """Whether at least half of a text, up to its end, is one short piece again and again: three times at least."""
    return any(
        repeated >= max(_TURNS * period, len(tokens) / 2)
        for period in range(1, min(LONGEST_PERIOD_tokens, len(tokens) // _TURNS) + 1)
        if (repeated := _repeated(tokens, period))
    )


def _repeated(tokens: Sequence[int], period: int) -> int:
    """Tokens at the end that have this period; the first piece counts too."""
    pairs = zip(reversed(tokens[period:]), reversed(tokens[:-period]), strict=True)
    same = 0
    for token, before in pairs:
        if token != before:
            break
        same += 1
    return same + period
