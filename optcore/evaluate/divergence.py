"""How far one model's predictions are from another's, as sums over tokens."""

import math
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax


class Divergence(NamedTuple):
    """Sums over predicted tokens."""

    tokens: int = 0
    negative_log_likelihood: float = 0.0
    """Nats, of the text under this model."""
    kl: float = 0.0
    """Nats, KL(source || this model)."""
    agreements: int = 0
    """Tokens where the most likely prediction is the source's."""
    hits: int = 0
    """Tokens where the most likely prediction is the text's."""

    def plus(self, other: "Divergence") -> "Divergence":
        """Sums over both."""
        return Divergence(
            self.tokens + other.tokens,
            self.negative_log_likelihood + other.negative_log_likelihood,
            self.kl + other.kl,
            self.agreements + other.agreements,
            self.hits + other.hits,
        )

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood."""
        return math.exp(self.negative_log_likelihood / self.tokens)

    @property
    def mean_kl(self) -> float:
        """Nats a token."""
        return self.kl / self.tokens

    @property
    def agreement(self) -> float:
        """Share of tokens, 0 to 1."""
        return self.agreements / self.tokens


def divergence(source_BTV: torch.Tensor, own_BTV: torch.Tensor, next_BT: torch.Tensor) -> Divergence:
    """Compare two models' predictions of the tokens that came next."""
    source, own = (logits.flatten(0, 1).float() for logits in (source_BTV, own_BTV))
    p, q = log_softmax(source, -1), log_softmax(own, -1)
    return Divergence(
        tokens=len(own),
        negative_log_likelihood=cross_entropy(own, next_BT.flatten(), reduction="sum").item(),
        kl=kl_div(q, p, log_target=True, reduction="sum").item(),
        agreements=int((source.argmax(-1) == own.argmax(-1)).sum()),
        hits=int((own.argmax(-1) == next_BT.flatten()).sum()),
    )
