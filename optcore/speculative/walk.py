"""The rounds of a drafting loop, walked through a text that the target wrote, without the loop.

A text's first token comes from the pass over the prompt, so no round gives it. A round that starts at a token has K
tokens drafted that follow it, and leaves those accepted and one more of the target's own. Nothing is drafted that would
leave no room for that one before the limit of new tokens; behind an end-of-text token that is accepted nothing counts.
The tokens a round (tau) count the target's own token in, the first token out: for tau = 1 the draft was of no use.

Shapes: S texts, N starts in each (all its tokens but the last), K drafted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


def walk(matches: Sequence[int]) -> list[int]:
    """Accepted tokens of each round, of greedy decoding: exactly those of the real loop.

    `matches` says of each start of one text how many drafted tokens in a row are what the text goes on with.
    """
    accepted, start = [], 0
    while start < len(matches):
        kept = min(matches[start], len(matches) - start)
        accepted.append(kept)
        start += kept + 1
    return accepted


@dataclass(frozen=True, eq=False)
class Chains:
    """What becomes of a chain of drafted tokens from every start, on texts drawn from the target itself.

    `odds_SNK` are the probabilities that each drafted token is accepted once all before it were, given that the text
    goes on as it does: min(1, q/p) of the text's tokens; 0 and 1 for greedy decoding and for one-hot drafts. A round
    of rejection sampling that leaves a token x has drafted and accepted it with just that probability (min(p, q) of p),
    so a walk that accepts at random with these odds is a real loop that happened to write this text.
    """

    odds_SNK: torch.Tensor
    starts_S: torch.Tensor
    """How many starts each text has: N where it goes up to the limit, less where it ended before."""

    @cached_property
    def is_text_SNK(self) -> torch.Tensor:
        """Which tokens are drafted and lie within their text, bool."""
        _, starts, count = self.odds_SNK.shape
        place_NK = torch.arange(starts)[:, None] + torch.arange(1, count + 1)
        return place_NK <= self.starts_S.clamp(max=starts - 1)[:, None, None]

    @cached_property
    def reached_SNK(self) -> torch.Tensor:
        """Probabilities that at least k+1 tokens are accepted, float64; 0 behind the text."""
        return self.odds_SNK.double().cumprod(-1) * self.is_text_SNK

    @cached_property
    def visits_SN(self) -> torch.Tensor:
        """Probabilities that a round starts there: a forward pass over the walk, which it saves drawing."""
        texts, starts, count = self.odds_SNK.shape
        alive = torch.nn.functional.pad(self.reached_SNK, (1, 1))
        alive[..., 0] = 1.0
        exactly_SNA = alive[..., :-1] - alive[..., 1:]
        visits = torch.zeros(texts, starts + count + 1, dtype=torch.float64)
        visits[:, 0] = 1.0
        for start in range(starts):
            visits[:, start + 1 : start + count + 2] += visits[:, start, None] * exactly_SNA[:, start]
        return visits[:, :starts] * (torch.arange(starts) < self.starts_S[:, None])

    @property
    def rounds_S(self) -> torch.Tensor:
        """Expected rounds of each text, float64; whole numbers where the odds are 0 and 1."""
        return self.visits_SN.sum(1)

    @property
    def tau(self) -> float:
        """Tokens a round, over all texts together."""
        return float(self.starts_S.sum() / self.rounds_S.sum())

    @property
    def accepted(self) -> list[list[int]]:
        """Of odds that are 0 and 1: what `walk` gives of each text."""
        matches_SN = self.reached_SNK.sum(-1).round().long()
        return [walk(row[:starts]) for row, starts in zip(matches_SN.tolist(), self.starts_S.tolist(), strict=True)]

    def only(self, rows: torch.Tensor) -> "Chains":
        """Of some texts alone, by their numbers."""
        return Chains(self.odds_SNK[rows], self.starts_S[rows])
