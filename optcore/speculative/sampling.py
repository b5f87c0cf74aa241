"""How a token is drawn: the one distribution that target and draft are both turned into before anything is compared.

Shapes: N rows, V vocabulary.
"""

import torch
from pydantic import Field
from torch.nn.functional import one_hot

from optcore.frozen import Frozen


class Sampling(Frozen):
    """Temperature, top-k and top-p, applied in this order, as Hugging Face's logits processors are."""

    temperature: float = Field(default=0.0, ge=0, le=10)
    """0 takes the likeliest token."""
    top_k: int | None = Field(default=None, ge=1)
    """Only so many likeliest tokens can be drawn."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens can be drawn that hold this much of the mass together."""


GREEDY = Sampling()


def probabilities(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution [N, V] that tokens are drawn from; one-hot without a temperature."""
    if sampling.temperature == 0:
        return one_hot(logits_NV.argmax(-1), logits_NV.shape[-1]).to(logits_NV.dtype)
    logits_NV = logits_NV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(sampling.top_k, -1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered_NV, order_NV = logits_NV.softmax(-1).sort(-1, descending=True)
        before_NV = ordered_NV.cumsum(-1) - ordered_NV
        surplus_NV = torch.zeros_like(before_NV, dtype=torch.bool).scatter(-1, order_NV, before_NV >= sampling.top_p)
        logits_NV = logits_NV.masked_fill(surplus_NV, -torch.inf)
    return logits_NV.softmax(-1)
