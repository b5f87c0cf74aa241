"""A target's shapes alone, on the meta device: what a draft will take is known before anything is read."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Self

import torch
from torch import nn

from optcore.speculative.target import TargetEnds, TargetShape
from optcore.streaming.skeleton import layers_of, skeleton
from optcore.training.head import Head


class TargetOutline(TargetShape):
    """As much of `TargetEnds` as a draft is built on. `head` is None where no one linear layer makes the logits."""

    def __init__(self, folder: Path) -> None:
        self.model = skeleton(folder, torch.float32)
        self.layers = len(layers_of(self.model)[1])
        self.taps: tuple[int, ...] = ()
        linear = self.model.get_output_embeddings()
        self.head = Head(linear) if isinstance(linear, nn.Linear) else None

    @property
    def device(self) -> torch.device:
        """Where nothing is stored."""
        return torch.device("meta")

    @property
    def parameters(self) -> int:
        """How many it has."""
        return sum(value.numel() for value in self.model.parameters())

    @property
    def ends_parameters(self) -> int:
        """How many it has outside its layers."""
        prefix = f"{layers_of(self.model)[0]}."
        named = self.model.named_parameters()
        return sum(value.numel() for name, value in named if not name.startswith(prefix))

    def tapping(self, taps: Sequence[int]) -> Self:
        """The same model's, with taps on these layers: which ones often depends on how many this outline counts."""
        tapped = copy(self)
        tapped.taps = tuple(taps)
        return tapped


AnyTarget = TargetEnds | TargetOutline
"""What a draft can be built on."""
