"""How a token is drawn: the one distribution that target and draft are both turned into before anything is compared.

Shapes: N rows, V vocabulary.
"""

import torch
from pydantic import Field

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
    """The distribution [N, V] that a token is drawn from; at temperature 0 all of it on the likeliest, the first among
    equals."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits_NV).scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    kept_NV = logits_NV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < kept_NV.shape[-1]:
        least_N1 = kept_NV.topk(sampling.top_k).values[..., -1:]
        kept_NV = kept_NV.masked_fill(kept_NV < least_N1, -torch.inf)
    if sampling.top_p is not None:
        sorted_NV, order_NV = kept_NV.sort(descending=True, stable=True)
        share_NV = sorted_NV.softmax(-1)
        is_behind_NV = share_NV.cumsum(-1) - share_NV >= sampling.top_p
        kept_NV = kept_NV.masked_fill(is_behind_NV.scatter(-1, order_NV, is_behind_NV), -torch.inf)
    return kept_NV.softmax(-1)
