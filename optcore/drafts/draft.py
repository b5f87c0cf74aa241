"""What all drafts that train have in common: they answer about whole windows, as text is given to them.

At position t a draft knows the target's features of tokens 0..t and the token t+1; its k-th answer there, from 0, is
about token t+2+k. An autoregressive draft is given the tokens up to t+1+k as the text has them; a parallel one is not.

Shapes: B windows of T tokens, A places of a window, H hidden size of the draft, D tokens of the draft vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from optcore.drafts.fusion import Fusion
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Drafter
from optcore.speculative.target import Features
from optcore.training.divergences import wide
from optcore.training.head import Head


class Draft(nn.Module, ABC):
    """A draft's parameters; the target's embeddings may be read, and are not among them."""

    method: ClassVar[str]
    taps: tuple[int, ...]
    """Layers of the target whose outputs it reads."""
    vocabulary: DraftVocabulary
    anchors: int | None = None
    """In how many places of a window training asks at most; None for all. Not None where each place that answers is a
    sequence of its own, so that a step asks `answers_at` in places drawn anew."""

    @property
    def most(self) -> int | None:
        """How many answers it has; None where it goes on from its own, for as long as it is asked."""
        return None

    @abstractmethod
    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """For k = 0..count-1 the hidden states [B, T, H] whose `logits` are the k-th answers.

        `positions_BT` begin at 0 again where a document begins: nothing attends over that border. Answers about tokens
        behind a window's end, or of another document, mean nothing.
        """

    def answers_at(
        self,
        anchors_BA: torch.Tensor,
        tokens_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        features: Features,
        count: int,
    ) -> Iterator[torch.Tensor]:
        """The same [B, A, H] in A places of each window only, numbered from its beginning."""
        rows_B1 = torch.arange(len(anchors_BA), device=anchors_BA.device)[:, None]
        for hidden_BTH in self.answers(tokens_BT, positions_BT, features, count):
            yield hidden_BTH[rows_B1, anchors_BA]

    @abstractmethod
    def head(self, k: int = 0) -> Head:
        """What makes logits of what `answers` gave as the k-th: a loss asks it about a few rows at a time."""

    def logits(self, hidden: torch.Tensor, k: int = 0) -> torch.Tensor:
        """Logits [..., D] of what `answers` gave as the k-th, in float32 (float64 where the draft is)."""
        linear, transform = self.head(k)
        found = wide(linear(hidden.to(linear.weight.dtype)))
        return transform(found) if transform else found

    def plain_tensors(self) -> dict[str, torch.Tensor]:
        """What is written, by the names of `state_dict`: nothing in it is relative to what was seen in training."""
        fusions = {name: module for name, module in self.named_modules() if isinstance(module, Fusion)}
        return self.state_dict() | {f"{name}.weight": module.plain_weight for name, module in fusions.items()}

    @abstractmethod
    def drafter(self, sequences: int) -> Drafter:
        """Begin to draft for so many sequences."""
