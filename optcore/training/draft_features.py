"""Where the features come from that a draft learns on: the target beside it, or what it once said."""

from typing import Protocol

import torch

from optcore.speculative.target import Features, Target
from optcore.training.trainee import inputs_of
from optcore.training.windows import Batch


class FeatureSource(Protocol):
    """Whoever knows what the target computes."""

    def features(self, batch: Batch, windows: list[int]) -> Features:
        """Of a batch, whose windows have these numbers; nothing in it requires a gradient."""
        ...


class LiveFeatures:
    """The target answers when asked. What it says is rounded as it would be on disk, so that both train the same."""

    def __init__(self, target: Target, dtype: torch.dtype) -> None:
        self._target, self._dtype = target, dtype

    def features(self, batch: Batch, windows: list[int]) -> Features:
        """See `FeatureSource`."""
        hidden_BTH, tapped = self._target.look(inputs_of(batch))
        return Features(self._rounded(hidden_BTH), tuple(self._rounded(one) for one in tapped))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._dtype).to(values.dtype)
