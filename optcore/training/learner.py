"""What the training loop asks of whatever learns."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from optcore.training.windows import Batch


class Learner(nn.Module, ABC):
    """Parameters that move and their loss as one module: what processes share out between them."""

    def forward(
        self, batch: Batch, windows: list[int], progress: float | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """One way in for all: what is shared out between processes is gathered only here.

        The loss of a batch, summed over the rows that count, at a share of training that is over: a scalar with a
        gradient. Without that share a validation's sums, by `measures`. `windows` are the numbers of the batch's.
        """
        return self._compared(batch, windows) if progress is None else self._loss(batch, windows, progress)

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Names of a validation's sums, `tokens` first: the same for every batch, also one of which no row counts."""

    @property
    @abstractmethod
    def measure(self) -> str:
        """What of a validation is to be low."""

    @abstractmethod
    def counts(self, batch: Batch) -> torch.Tensor:
        """The rows by whose number a step's loss is divided, bool."""

    @abstractmethod
    def _loss(self, batch: Batch, windows: list[int], progress: float) -> torch.Tensor: ...

    @abstractmethod
    def _compared(self, batch: Batch, windows: list[int]) -> dict[str, torch.Tensor]: ...
