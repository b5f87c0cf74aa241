"""How sure a ratio of sums over prompts is, by the bootstrap.

Whole prompts are drawn, since tokens of one depend on each other (Efron and Tibshirani 1993, percentile intervals). Of
a few prompts such an interval is too narrow, so its ends are moved as far out as Student's t lies beyond the normal
distribution (Hesterberg 2015, What teachers should know about the bootstrap: expanded percentiles).

Shapes: S prompts, R resamples.
"""

from statistics import NormalDist

import torch

from optcore.acceptance_length import Interval

_RESAMPLES = 2000
_SHARE = 0.95


def ratio_interval(over_S: torch.Tensor, under_S: torch.Tensor, seed: int = 0) -> Interval:
    """Of sum(over) / sum(under), such as tokens and rounds of each prompt. One prompt alone says nothing: it is a
    point. `under_S` is positive."""
    count = len(over_S)
    generator = torch.Generator().manual_seed(seed)
    drawn_RS = torch.randint(count, (_RESAMPLES, count), generator=generator)
    ratios_R = over_S.double()[drawn_RS].sum(1) / under_S.double()[drawn_RS].sum(1)
    below = _share_below(max(1, count - 1))
    ends = torch.tensor([below, 1 - below], dtype=torch.float64)
    low, high = torch.quantile(ratios_R, ends).tolist()
    return Interval(low=low, high=high)


def _share_below(freedom: int) -> float:
    """Share of resamples below an interval; Student's quantile by Abramowitz and Stegun 26.7.5."""
    normal = NormalDist()
    z = normal.inv_cdf((1 + _SHARE) / 2)
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return normal.cdf(-student * ((freedom + 1) / freedom) ** 0.5)
