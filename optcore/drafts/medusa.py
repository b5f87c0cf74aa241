"""Medusa (arXiv:2401.10774): a head for each token ahead, all on the target's last hidden state.

Head k is a residual block and a linear layer over the vocabulary: x + SiLU(W x + b), with W and b zero
and the linear layer the target's own at first, so that every head begins by saying what the target says next. Which
tokens stand in between, no head knows.

Shapes: B rows of T tokens, H hidden size, D tokens of the draft vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import silu

from optcore.drafts.borrowed import Borrowed
from optcore.drafts.draft import Draft
from optcore.drafts.drawing import Drawn
from optcore.drafts.slots import last_of, left_aligned
from optcore.drafts.tree import Path, nodes_of, parents_of
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Proposal
from optcore.speculative.outline import AnyTarget
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features
from optcore.training.head import Head


class ResidualBlock(nn.Module):
    """Layers with a residual each; parameters named as vLLM's, with the biases that the official heads have."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] of [..., H]."""
        for layer in self.layers:
            hidden = hidden + silu(layer(hidden))
        return hidden


class Medusa(Draft):
    """So many heads, each with `depth` residual layers and, unless they share the target's, a linear layer of its own.

    With a `tree` (see `optcore.drafts.tree`) its drafter proposes candidates side by side instead of a chain.
    """

    method: ClassVar[str] = "medusa"
    taps: tuple[int, ...] = ()

    def __init__(
        self, target: AnyTarget, vocabulary: DraftVocabulary, heads: int, *, depth: int = 1, own_heads: bool = True
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.tree: tuple[Path, ...] | None = None
        self._borrowed = Borrowed.of(target, vocabulary)
        self.blocks = nn.ModuleList(ResidualBlock(target.width, depth) for _ in range(heads))
        self.to(target.device)
        self.lm_heads = nn.ModuleList(self._head() for _ in range(heads if own_heads else 0))

    @property
    def most(self) -> int:
        """As many as heads."""
        return len(self.blocks)

    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """Every head's, of the same hidden state: neither the tokens nor the documents matter to it."""
        if count > len(self.blocks):
            raise ValueError(f"{len(self.blocks)} heads give no {count} answers")
        hidden_BTH = features.hidden_BTH.to(self._dtype)
        for block in self.blocks[:count]:
            yield block(hidden_BTH)

    def head(self, k: int = 0) -> Head:
        """Its own for each answer, with the soft cap or factor of the target."""
        borrowed = self._borrowed.head
        return Head(self.lm_heads[k], borrowed.transform) if self.lm_heads else borrowed

    def drafter(self, sequences: int) -> "MedusaDrafter":
        """Begin to draft for so many sequences."""
        return MedusaDrafter(self, sequences)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.blocks.parameters()).dtype

    def _head(self) -> nn.Linear:
        """A copy of the target's, over the draft vocabulary."""
        weight_DH, bias_D = self._borrowed.weight_DH, self._borrowed.head.linear.bias
        head = nn.Linear(*reversed(weight_DH.shape), bias=bias_D is not None, device=weight_DH.device)
        with torch.no_grad():
            head.weight.copy_(weight_DH)
            if bias_D is not None:
                head.bias.copy_(bias_D)
        return head


class MedusaDrafter:
    """All it remembers of a sequence is the last hidden state."""

    taps: tuple[int, ...] = ()

    def __init__(self, draft: Medusa, sequences: int) -> None:
        self._draft = draft
        self._last_BH = draft._borrowed.weight_DH.new_zeros(sequences, draft._borrowed.weight_DH.shape[1])

    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """Keep each row's last valid hidden state."""
        counts_B, hidden_BTH = left_aligned(valid_BT, features.hidden_BTH)
        self._last_BH = torch.where((counts_B > 0)[:, None], last_of(hidden_BTH, counts_B), self._last_BH)

    @torch.no_grad()
    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """A chain of at most as many tokens as there are heads, or a tree's first `count` nodes.

        The heads do not know each other's tokens, so what was drawn before changes no distribution. A tree holds the
        likeliest tokens whatever the temperature: certain guesses, which are verified as such.
        """
        tree = self._draft.tree
        if tree is not None:
            return self._candidates(tree[:count])
        drawn = Drawn(self._draft.vocabulary, sampling, generator)
        for logits_BD in self._logits(min(count, len(self._draft.blocks))):
            drawn.draw(logits_BD)
        return drawn.proposal

    def _candidates(self, tree: Sequence[Path]) -> Proposal:
        heads = max(len(path) for path in tree)
        ranks = 1 + max(path[-1] for path in tree)
        likeliest = [logits_BD.topk(ranks, -1).indices for logits_BD in self._logits(heads)]
        ids_D = self._draft.vocabulary.ids_D.to(self._last_BH.device)
        tokens_BK = torch.stack([ids_D[likeliest[head][:, rank]] for head, rank in nodes_of(tree)], 1)
        return Proposal(tokens_BK, parents_K=parents_of(tree))

    def _logits(self, heads: int) -> Iterator[torch.Tensor]:
        features = Features(self._last_BH[:, None], ())
        nothing = torch.empty(0)
        for k, hidden_B1H in enumerate(self._draft.answers(nothing, nothing, features, heads)):
            yield self._draft.logits(hidden_B1H, k)[:, 0]
