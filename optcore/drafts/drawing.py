"""How a draft chooses a token.

Shapes: B rows, D tokens of the draft vocabulary, V of the target's.
"""

import torch

from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import Sampling, drawn, probabilities


class Drawn:
    """Tokens chosen one after another, as a proposal."""

    def __init__(self, vocabulary: DraftVocabulary, sampling: Sampling, generator: torch.Generator | None) -> None:
        self._vocabulary, self._sampling, self._generator = vocabulary, sampling, generator
        self._tokens: list[torch.Tensor] = []
        self._from: list[torch.Tensor] = []

    def draw(self, logits_BD: torch.Tensor) -> torch.Tensor:
        """The next token of each row, as the target's ids, int64 [B]: the likeliest one without a temperature."""
        if self._sampling.temperature == 0:
            chosen_B = self._vocabulary.ids_D.to(logits_BD.device)[logits_BD.argmax(-1)]
        else:
            p_BV = probabilities(self._vocabulary.spread(logits_BD, -torch.inf), self._sampling)
            chosen_B = drawn(p_BV, self._generator)
            self._from.append(p_BV)
        self._tokens.append(chosen_B)
        return chosen_B

    @property
    def proposal(self) -> Proposal:
        """A chain of what was drawn."""
        return Proposal(torch.stack(self._tokens, 1), torch.stack(self._from, 1) if self._from else None)
