"""Channel scales that protect the weights which matter most (AWQ, arXiv:2306.00978).

The paper compares a layer's outputs on calibration tokens for each candidate. Their squared error is tr(dW H dW^T)
with H = X^T X / tokens, exactly, so the search costs the same for any number of tokens. The paper's second search, for
clipping, is the scale search that follows (`find_scales`): it shrinks each group's scale as clipping does, and with
`"hessian"` weighs what is clipped by the inputs it meets.
"""

from collections.abc import Sequence
from functools import partial

import torch

from optcore.algorithms.scale_search import Method
from optcore.algorithms.smoothing import Consumer, Family, Smoothing, Tie, balance, search, smoothquant_scales
from optcore.schemes import Scheme


def awq_scales(
    consumers: Sequence[Consumer], scheme: Scheme, dtype: torch.dtype, tie: Tie, method: Method
) -> Smoothing:
    """The best ratio of 0, 0.05 .. 1 with and without weight magnitudes; ones where none helps.

    Where the scheme rounds inputs too, their expected error counts as well, so W4A4 and W8A8 get what serves both. For
    integers SmoothQuant's scales are tried beside: the largest value sets the step of all others, whatever their mean
    square. On a floating grid it does not, and there they came out slightly worse.
    `method` finds the weight scales of each candidate.
    """
    families = _families(consumers)
    if scheme.activations is not None and scheme.activations.type == "int":
        families.append(partial(smoothquant_scales, consumers))
    return search(families, consumers, scheme, dtype, tie, method)


def _families(consumers: Sequence[Consumer]) -> list[Family]:
    """s = x^a / w^(1 - a) and s = x^a, with root mean squares x of inputs and mean magnitudes w of weights.

    Each is divided by sqrt(max * min), which centres it around 1.
    """
    seen = [consumer for consumer in consumers if consumer.found.tokens and consumer.found.gram_KK is not None]
    if not seen:
        return []
    tokens = sum(consumer.found.tokens for consumer in seen)
    inputs_K = sum(consumer.square_K * (consumer.found.tokens / tokens) for consumer in seen).sqrt()
    weights_K = torch.cat([weight for consumer in seen for weight in consumer.weights]).abs().mean(0)
    live_K = (inputs_K > 0) & (weights_K > 0)
    return [
        lambda ratio: _centred(balance(inputs_K, weights_K, ratio, 1 - ratio), live_K),
        lambda ratio: _centred(balance(inputs_K, weights_K, ratio, 0.0), live_K),
    ]


def _centred(scale_K: torch.Tensor, live_K: torch.Tensor) -> torch.Tensor:
    """Without a look at how many are live, for which a GPU would have to be waited for."""
    high, low = (torch.where(live_K, scale_K, end) for end in (-torch.inf, torch.inf))
    centred_K = torch.where(live_K, scale_K / (high.amax() * low.amin()).sqrt(), 1.0)
    return torch.where(live_K.any(), centred_K, scale_K)
