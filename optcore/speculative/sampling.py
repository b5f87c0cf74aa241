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
    """What a token is drawn from [N, V], float32 (float64 stays); all on the likeliest token at temperature 0."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if sampling.temperature == 0:
        return torch.zeros_like(logits_NV).scatter(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    logits_NV = logits_NV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(sampling.top_k, -1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending = logits_NV.sort(-1)
        is_rare = ascending.values.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        is_rare[:, -1] = False  # the likeliest one stays whatever it holds
        logits_NV = logits_NV.masked_fill(is_rare.scatter(-1, ascending.indices, is_rare), float("-inf"))
    return logits_NV.softmax(-1)
