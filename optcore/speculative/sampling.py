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
    """What tokens are drawn from, [..., V]: float64 of float64, float32 of all else; one-hot at temperature 0."""
    logits = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending, order = logits.sort(-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        removed[..., -1:] = False  # the likeliest stays
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    return logits.softmax(-1)


def drawn(probabilities_NV: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One token a row, int64 [N]."""
    return torch.multinomial(probabilities_NV, 1, generator=generator)[:, 0]
