"""The tokens that a draft can say: the most frequent ones of its training text, since a head over all costs time.

Shapes: V tokens of the target, D of the draft.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DraftVocabulary:
    """Which of the target's tokens a draft knows."""

    ids_D: torch.Tensor
    """The target's ids, int64, ascending."""
    size: int
    """V."""

    @classmethod
    def whole(cls, size: int) -> "DraftVocabulary":
        """Every token."""
        return cls(torch.arange(size), size)

    @classmethod
    def most_frequent(cls, counts_V: torch.Tensor, size: int) -> "DraftVocabulary":
        """The `size` tokens that were seen most often, earlier ids before later ones among equals."""
        order_V = torch.argsort(counts_V, descending=True, stable=True)
        return cls(order_V[:size].sort().values, len(counts_V))

    @property
    def is_whole(self) -> bool:
        """Whether it leaves no token out."""
        return len(self.ids_D) == self.size

    @property
    def d2t_D(self) -> torch.Tensor:
        """What engines add to a draft's id to get the target's, int64."""
        return self.ids_D - torch.arange(len(self.ids_D), device=self.ids_D.device)

    @property
    def t2d_V(self) -> torch.Tensor:
        """Which of the target's tokens it knows, bool."""
        known_V = torch.zeros(self.size, dtype=torch.bool, device=self.ids_D.device)
        known_V[self.ids_D] = True
        return known_V

    def spread(self, values: torch.Tensor, filler: float) -> torch.Tensor:
        """[..., D] over the target's tokens, [..., V]; `filler` for those it does not know."""
        if self.is_whole:
            return values
        spread = values.new_full((*values.shape[:-1], self.size), filler)
        spread[..., self.ids_D] = values
        return spread
