"""A whole small model as a draft: any with the target's vocabulary, cut from the target or trained by itself.

Shapes: B sequences of T tokens, H hidden size of the small model, K drafted tokens, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import pad

from optcore.drafts.draft import Draft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import RecipeError
from optcore.speculative.drafter import Proposal
from optcore.speculative.sampling import Sampling, drawn, probabilities
from optcore.speculative.session import Session
from optcore.speculative.target import Features, Target
from optcore.training.head import Head


class SmallModel(Draft):
    """A checkpoint that knows nothing of the target but its tokens: the k-th answer at position t is what it says
    itself at position t + 1 + k."""

    method: ClassVar[str] = "model"
    taps: tuple[int, ...] = ()

    def __init__(self, folder: Path, vocabulary: int, device: torch.device | None = None) -> None:
        """`vocabulary` is how many tokens the target has: `RecipeError` where the small model has not as many."""
        super().__init__()
        self.model = Target(folder, device=device)
        self.network = self.model.model
        if self.model.vocabulary != vocabulary:
            raise RecipeError(
                f"the draft model has {self.model.vocabulary:,} tokens, the target {vocabulary:,}",
                remedy="use a draft of the same family, whose vocabulary is the target's",
                field="/chain",
            )
        self.vocabulary = DraftVocabulary.whole(vocabulary)

    @torch.no_grad()
    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """See `Draft`. Where the text goes on is known, so one pass answers all."""
        is_packed = bool((positions_BT[:, 1:] == 0).any())
        inputs = {"input_ids": tokens_BT} | ({"position_ids": positions_BT} if is_packed else {})
        hidden_BTH = self.model.look(inputs).hidden_BTH
        for ahead in range(1, count + 1):
            yield pad(hidden_BTH[:, ahead:], (0, 0, 0, min(ahead, tokens_BT.shape[1])))

    def head(self, k: int = 0) -> Head:
        """See `Draft`: its own, for every answer."""
        assert self.model.head is not None
        return self.model.head

    def drafter(self, sequences: int) -> "SmallModelDrafter":
        """See `Draft`."""
        return SmallModelDrafter(self.model, sequences)


class SmallModelDrafter:
    """Writes on by itself, token by token, and forgets what it wrote."""

    taps: tuple[int, ...] = ()

    def __init__(self, model: Target, sequences: int) -> None:
        self._session = Session(model, sequences)

    @torch.no_grad()
    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """See `Drafter`."""
        self._session.read(tokens_BT, valid_BT)
        self._session.keep(valid_BT)

    @torch.no_grad()
    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """See `Drafter`."""
        settled_B = self._session.lengths_B
        tokens, drawn_from = [chosen_B], []
        for _ in range(count):
            logits_BTV, _ = self._session.extend(tokens[-1][:, None])
            drawn_from.append(probabilities(logits_BTV[:, -1], sampling))
            tokens.append(drawn(drawn_from[-1], generator))
        self._session.crop(settled_B)
        return Proposal(torch.stack(tokens[1:], 1), torch.stack(drawn_from, 1))
