"""Quantiles of magnitudes of any number of values, in half a megabyte."""

import torch

_DROPPED_bits = 15
"""Of a float32: the sign, 8 bits of exponent and 8 of mantissa are left, so bins are 0.4 % wide, at any scale."""
_BINS = 1 << 16


class Magnitudes:
    """A histogram of |x| over the leading bits of its float32 form, which are in the order of the magnitudes."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_BINS, dtype=torch.long)
        self._below: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Count values of a tensor of any shape."""
        bits = x.detach().float().abs().reshape(-1).view(torch.int32) >> _DROPPED_bits
        self._counts += torch.bincount(bits, minlength=_BINS).cpu()
        self._below = None

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self._counts.sum())

    def quantile(self, share: float) -> float:
        """The magnitude that a share of the values does not exceed, to a part of a bin; 0 where zeros are as many."""
        if self._below is None:
            self._below = self._counts.cumsum(0)
        wanted = share * float(self._below[-1])
        place = int(torch.searchsorted(self._below.double(), torch.tensor(wanted, dtype=torch.double)))
        before = int(self._below[place - 1]) if place else 0
        if not place or wanted <= before:
            return 0.0
        edges = torch.tensor([place << _DROPPED_bits, (place + 1) << _DROPPED_bits], dtype=torch.int32)
        low, high = edges.view(torch.float32).tolist()
        return float(low + (high - low) * (wanted - before) / int(self._counts[place]))
