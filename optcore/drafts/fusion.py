"""How a draft fuses the features of several of its target's layers.

Shapes: F features of all tapped layers together, H hidden size of the draft.
"""

import torch
from torch import nn
from torch.nn.functional import linear

_FLOOR = 1e-3
"""Of the mean scale: a feature that is hardly ever there is not blown up to the size of the others."""


class Fusion(nn.Linear):
    """A linear map [F, H] that trains on features of unit size, and is written as one that reads them as they are.

    Hidden states of a language model are large, and some of their channels many times larger than the others
    (arXiv:2402.17762). Read as they are they drown what the draft's own layer adds to them, and AdamW, which moves
    every weight alike, moves the map's output too far. So in training the features are divided by their root mean
    squares on the first text that is seen, and what is written is the weight divided by these: a data-dependent start
    (arXiv:1511.06856) that no engine needs to know of.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width, bias=False)
        self.scale_F: torch.Tensor
        self.register_buffer("scale_F", torch.ones(features), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., H] of features [..., F]."""
        return linear(features.to(self.weight.dtype) / self.scale_F, self.weight)

    @torch.no_grad()
    def settle(self, rms_F: torch.Tensor, *, keeps: bool) -> None:
        """Divide by these root mean squares from now on; the map stays the same if it `keeps`, as one that has learned
        must, and otherwise its weight does."""
        scale_F = rms_F.clamp(min=_FLOOR * float(rms_F.mean()) or 1.0).to(self.scale_F)
        if keeps:
            self.weight.mul_(scale_F / self.scale_F)
        self.scale_F.copy_(scale_F)

    @property
    def plain_weight(self) -> torch.Tensor:
        """Of the same map [H, F] for features as they are: what is written."""
        return self.weight.detach() / self.scale_F
