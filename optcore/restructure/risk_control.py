"""A setting whose risk is, with stated confidence, no more than allowed: Learn then Test (arXiv:2110.01052)."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Setting = TypeVar("Setting")
_ROUNDING = 1e-9


def hoeffding_bentkus(losses: Sequence[float], risk: float) -> float:
    """A p-value of the hypothesis that the mean loss is above `risk`, from independent losses between 0 and 1.

    The smaller of Hoeffding's exp(-n kl(mean, risk)) and Bentkus' e P(Bin(n, risk) <= ceil(n mean)); valid for any
    number of losses and any distribution of them (Bates et al., arXiv:2101.02703, section 3.1).
    """
    count, total = len(losses), math.fsum(losses)
    if not count or risk <= 0 or total >= count * risk:
        return 1.0
    hoeffding = math.exp(-count * _bernoulli_kl(total / count, risk))
    return min(1.0, hoeffding, math.e * binomial_tail(math.ceil(total - _ROUNDING), count, risk))


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """P(Bin(trials, share) <= successes), every term from logarithms of factorials: none overflows."""
    if not 0 < share < 1:
        return 1.0 if share <= 0 or successes >= trials else 0.0
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(one + 1)
        - math.lgamma(trials - one + 1)
        + one * math.log(share)
        + (trials - one) * math.log1p(-share)
        for one in range(min(successes, trials) + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def least_losses(risk: float, delta: float) -> int:
    """How many losses it takes at least before a risk can be ruled out, were they all 0."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


def last_safe(
    settings: Iterable[Setting], losses_of: Callable[[Setting], Sequence[float]], risk: float, delta: float
) -> Setting | None:
    """The last of `settings`, the safest first, before the first one whose risk may be above `risk`; None for none.

    Fixed-sequence testing: settings are tested in an order chosen before any loss was seen, each at the full `delta`,
    and the first that fails ends it. So with a probability of at least 1 - delta all that passed are within the risk.
    """
    safe = None
    for setting in settings:
        if hoeffding_bentkus(losses_of(setting), risk) > delta:
            break
        safe = setting
    return safe


def _bernoulli_kl(mean: float, risk: float) -> float:
    """KL(Bernoulli(mean) || Bernoulli(risk)) in nats."""
    found = (1 - mean) * (math.log1p(-mean) - math.log1p(-risk)) if mean < 1 else 0.0
    return found + (mean * math.log(mean / risk) if mean else 0.0)
