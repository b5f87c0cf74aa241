"""Drafting without a model: what followed the same tokens the last time (prompt lookup).

After `prompt_lookup_num_tokens` of Hugging Face transformers and `ngram` of vLLM, except that a match may run into what
it has itself proposed, as in LZ77, so that a repetition is continued to any length.
"""

import torch

from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features


class _Past:
    """The tokens of one sequence, and where each run of up to `longest` of them ended last."""

    def __init__(self, longest: int) -> None:
        self.tokens: list[int] = []
        self._longest = longest
        self._behind: dict[tuple[int, ...], int] = {}

    def append(self, token: int) -> None:
        self.tokens.append(token)
        for length in range(1, min(self._longest, len(self.tokens)) + 1):
            self._behind[tuple(self.tokens[-length:])] = len(self.tokens)

    def continued(self, chosen: int, count: int) -> list[int]:
        """What followed the longest known run that ends in the chosen token; nothing where that is new."""
        last = [*self.tokens[-self._longest :], chosen][-self._longest :]
        for first in range(len(last)):
            place = self._behind.get(tuple(last[first:]))
            if place is not None:
                text = [*self.tokens[place : place + count], chosen][:count]
                period = len(self.tokens) + 1 - place  # from there on it repeats itself
                while len(text) < count:
                    text.append(text[-period])
                return text
        return []


class NgramDrafter:
    """Proposes what came behind the most recent occurrence of the longest suffix, of `longest` tokens down to one."""

    taps: tuple[int, ...] = ()

    def __init__(self, sequences: int, longest: int = 4) -> None:
        self._pasts = [_Past(longest) for _ in range(sequences)]

    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """See `Drafter`."""
        for past, tokens, valid in zip(self._pasts, tokens_BT.tolist(), valid_BT.tolist(), strict=True):
            for token, is_valid in zip(tokens, valid, strict=True):
                if is_valid:
                    past.append(token)

    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """See `Drafter`; a sequence in which the chosen token is new has no proposal."""
        found = [past.continued(chosen, count) for past, chosen in zip(self._pasts, chosen_B.tolist(), strict=True)]
        tokens_BK = torch.tensor([text or [0] * count for text in found], device=chosen_B.device)
        has_B = torch.tensor([bool(text) for text in found], device=chosen_B.device)
        return Proposal(tokens_BK, valid_BK=has_B[:, None].expand(-1, count))
