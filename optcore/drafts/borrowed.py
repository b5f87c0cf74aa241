"""What a draft reads of its target without owning it: the table of tokens, and the head.

Shapes: D tokens of the draft vocabulary, H hidden size of the target.
"""

from dataclasses import dataclass

import torch
from torch import nn

from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import UnknownArchitecture
from optcore.speculative.outline import AnyTarget
from optcore.training.head import Head


@dataclass(frozen=True)
class Borrowed:
    """No module, so that none of it is counted, trained or saved as the draft's."""

    embeddings: nn.Embedding
    head: Head
    """The target's rows of the draft vocabulary, and what it does to its logits: a soft cap or a factor."""

    @classmethod
    def of(cls, target: AnyTarget, vocabulary: DraftVocabulary) -> "Borrowed":
        """Raises `UnknownArchitecture` where the target's logits are not made by a linear head, or its table is not as
        wide as its layers."""
        if target.head is None or target.embeddings.embedding_dim != target.width:
            raise UnknownArchitecture(
                f"{type(target.model).__name__} makes logits, or reads tokens, in a way that no draft could share",
                remedy="use a model with a linear head, and embeddings as wide as its layers",
                field="/model",
            )
        head = target.head.linear
        rows = slice(None) if vocabulary.is_whole else vocabulary.ids_D.to(target.device)
        weight, bias = head.get_parameter("weight").detach(), head.bias
        linear = nn.Linear(target.width, len(vocabulary.ids_D), bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight[rows], requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach()[rows], requires_grad=False)
        return cls(target.embeddings, Head(linear, target.head.transform))

    @property
    def weight_DH(self) -> torch.Tensor:
        """The head's rows."""
        found: torch.Tensor = self.head.linear.weight
        return found

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The table's rows [..., H] of tokens [...], in the type of a draft's parameter."""
        found: torch.Tensor = self.embeddings(tokens)
        return found.to(like.dtype)
