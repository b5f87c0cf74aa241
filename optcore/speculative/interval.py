"""How sure a ratio of sums over prompts is, by the bootstrap.

Whole prompts are drawn, since tokens of one depend on each other (Efron and Tibshirani 1993, percentile intervals).

Shapes: S prompts, R resamples.
"""

import torch

from optcore.frozen import Frozen

_RESAMPLES = 2000
_SHARE = 0.95


class Interval(Frozen):
    """What a value lies in, with 95 % confidence."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether it lies in there."""
        return self.low <= value <= self.high


def ratio_interval(over_S: torch.Tensor, under_S: torch.Tensor, seed: int = 0) -> Interval:
    """Of sum(over) / sum(under), such as tokens and rounds of each prompt. One prompt alone says nothing: it is a
    point. `under_S` is positive."""
    count = len(over_S)
    generator = torch.Generator().manual_seed(seed)
    drawn_RS = torch.randint(count, (_RESAMPLES, count), generator=generator)
    ratios_R = over_S.double()[drawn_RS].sum(1) / under_S.double()[drawn_RS].sum(1)
    ends = torch.tensor([(1 - _SHARE) / 2, (1 + _SHARE) / 2], dtype=torch.float64)
    low, high = torch.quantile(ratios_R, ends).tolist()
    return Interval(low=low, high=high)
