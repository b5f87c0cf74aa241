"""Who is out of a race before it ends: a candidate that could not be on the front within what measuring it leaves open.

Every candidate is measured on the same windows of text, so two are compared window by window: how hard a window is
counts for neither. Means of windows are taken to follow Student's t.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from optcore.report.numbers import format_bytes
from optcore.search.objective import Objective

CONFIDENCE = 0.99
"""Of each single comparison, one-sided."""
_FEW = {1: 31.821, 2: 6.965, 3: 4.541}
SAME_SIZE = 0.02
"""Files say of a size what the checkpoint before them says to within this share; equal checkpoints make equal files."""


class Screened(NamedTuple):
    """What is known of a candidate before anything is written for it."""

    name: str
    size: int | None
    """Bytes of the checkpoint that its files are written from; None where those say little of the files."""
    parameters: int
    kl_W: tuple[float, ...]
    """Mean KL to the source of each window, nats a token; empty where none was measured."""
    text: str = ""
    """Digest of the windows."""


def loses(one: Screened, others: Iterable[Screened], goal: Objective) -> str:
    """Why a candidate is out; empty while it is not.

    By its size or its KL, when it surely misses a bound. By another candidate, when that is no larger and surely
    nearer to the source; but where speed decides, which is not known yet, a larger one may still be the faster. Whoever
    surely misses a bound stops none that may meet it: one that is as good in all that is bounded misses it no less.
    """
    if why := _misses(one, goal):
        return why
    if goal.is_about_speed:
        return ""
    better = (other for other in others if _no_larger(other, one, goal) and _is_nearer(other, one))
    found = min(better, key=lambda other: fmean(other.kl_W), default=None)
    if found is None or found.size is None or one.size is None:
        return ""
    return (
        f"{found.name} is no larger ({format_bytes(found.size)}, this one {format_bytes(one.size)}) and surely nearer "
        f"to the source (KL {fmean(found.kl_W):.4g}, this one {fmean(one.kl_W):.4g}, over {len(one.kl_W)} windows)"
    )


def surely_below(a_W: Sequence[float], b_W: Sequence[float]) -> bool:
    """Whether the mean of `a` is below that of `b` beyond chance, on the same windows."""
    if len(a_W) < 2 or len(a_W) != len(b_W):
        return False
    return lower_limit([b - a for a, b in zip(a_W, b_W, strict=True)]) > 0


def lower_limit(values: Sequence[float]) -> float:
    """What the mean is above, with the confidence of one comparison; minus infinity for a single value."""
    if len(values) < 2:
        return -math.inf
    return fmean(values) - t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_quantile(degrees: int) -> float:
    """Of Student's t at our confidence, from the normal one's: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.7.5. Within 0.2 % from four degrees of freedom on; below that from their table 26.10."""
    if degrees in _FEW:
        return _FEW[degrees]
    z = NormalDist().inv_cdf(CONFIDENCE)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    correction: float = sum(term / degrees**power for power, term in enumerate(terms, start=1))
    return z + correction


def too_large(size: int, parameters: int, goal: Objective) -> str:
    """What of a size, known before its files are, is surely beyond a bound; empty where it may be within."""
    least = size * (1 - SAME_SIZE)
    if goal.max_bytes is not None and least > goal.max_bytes:
        return f"{format_bytes(size)} of weights, and at most {format_bytes(goal.max_bytes)} are asked for"
    if goal.max_bits_per_weight is not None and 8 * least / parameters > goal.max_bits_per_weight:
        bits = 8 * size / parameters
        return f"{bits:.3g} bits a weight, and at most {goal.max_bits_per_weight:g} are asked for"
    return ""


def _misses(one: Screened, goal: Objective) -> str:
    if one.size is not None and (why := too_large(one.size, one.parameters, goal)):
        return f"it has {why}"
    if goal.max_kl is not None and (limit := lower_limit(one.kl_W) if one.kl_W else -math.inf) > goal.max_kl:
        return (
            f"its KL is {fmean(one.kl_W):.4g}, above {limit:.4g} with {CONFIDENCE:.0%} confidence over "
            f"{len(one.kl_W)} windows, and at most {goal.max_kl:g} is asked for"
        )
    return ""


def _is_nearer(one: Screened, other: Screened) -> bool:
    return one.text == other.text and surely_below(one.kl_W, other.kl_W)


def _no_larger(one: Screened, other: Screened, goal: Objective) -> bool:
    """A pruned one has fewer bytes and yet may have more bits a weight, which counts where those are bounded."""
    if one.size is None or other.size is None:
        return False
    if goal.max_bits_per_weight is not None and one.size * other.parameters > other.size * one.parameters:
        return False
    return one.size == other.size or one.size <= other.size * (1 - SAME_SIZE)
