"""What a draft reads of its target without owning it: the table of tokens, and the head.

Shapes: D tokens of the draft vocabulary, H hidden size of the target.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear

from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import UnknownArchitecture
from optcore.speculative.target import Target
from optcore.training.linear_loss import Transform


@dataclass(frozen=True)
class Borrowed:
    """No module, so that none of it is counted, trained or saved as the draft's."""

    embeddings: nn.Embedding
    weight_DH: torch.Tensor
    """The head's rows of the draft vocabulary."""
    bias_D: torch.Tensor | None
    transform: Transform | None
    """What the target does to its logits: a soft cap or a factor."""

    @classmethod
    def of(cls, target: Target, vocabulary: DraftVocabulary) -> "Borrowed":
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
        return cls(
            embeddings=target.embeddings,
            weight_DH=weight[rows],
            bias_D=None if bias is None else bias.detach()[rows],
            transform=target.head.transform,
        )

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The table's rows [..., H] of tokens [...], in the type of a draft's parameter."""
        found: torch.Tensor = self.embeddings(tokens)
        return found.to(like.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [..., D] of hidden states [..., H] as the target's head makes them."""
        return self.shaped(linear(hidden.to(self.weight_DH.dtype), self.weight_DH, self.bias_D))

    def shaped(self, products: torch.Tensor) -> torch.Tensor:
        """What the target does behind its head, to the products [..., D] of any head; float32."""
        wide = products.float()
        return self.transform(wide) if self.transform else wide
