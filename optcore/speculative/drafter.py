"""Who guesses during decoding.

A round of one sequence: the target has computed tokens 0..n-1 and chosen token n, which it has not computed yet. A
drafter that has read tokens 0..n-1 with what the target computed at each proposes tokens n+1..n+K.

Shapes: B sequences, T tokens read, K proposed tokens, D draft vocabulary as the target's token ids.
"""

from typing import NamedTuple, Protocol

import torch

from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features


class Proposal(NamedTuple):
    """Tokens to verify: a chain, or a tree."""

    tokens_BK: torch.Tensor
    """The target's token ids, int64."""
    probabilities_BKV: torch.Tensor | None = None
    """The distribution, over the target's vocabulary, that each token was drawn from; None for what was not drawn
    (one-hot): n-grams and likeliest tokens. Later siblings' may still hold the earlier ones' mass: it is taken out."""
    parents_K: tuple[int, ...] | None = None
    """Of a tree: each token's parent among these, -1 for the chosen token; None for a chain. Siblings stand in the
    order in which they were drawn without replacement."""
    valid_BK: torch.Tensor | None = None
    """False where a sequence has no proposal: such tokens are filler, and nothing valid comes behind them on their
    path. None: all are proposed."""


class Drafter(Protocol):
    """State of drafting for B sequences."""

    taps: tuple[int, ...]
    """Layers of the target whose outputs it reads."""

    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """Tokens that are settled, with what the target computed at each; rows are padded where `valid_BT` is False."""
        ...

    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """Guess what follows the chosen tokens, `count` tokens a sequence. Leaves no trace in the drafter's state."""
        ...
