"""Which windows a step trains on: a function of the seed and the step alone, so a run goes on exactly where it was."""

from collections.abc import Iterator
from functools import lru_cache

import torch

_MICRO_tokens = 4096


class Order:
    """Windows 0 to `count` - 1 in an order of their own for each time that they are gone through."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count = count
        self.batch = batch
        self._permutation = lru_cache(maxsize=2)(lambda epoch: _permutation(count, seed, epoch))

    def windows(self, step: int) -> list[int]:
        """The windows of a step counted from 0; a step may reach into the next round."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self._permutation(place // self.count)[place % self.count] for place in places]


def micro_batches(windows: list[int], size: int) -> Iterator[list[int]]:
    """Parts of a step that are in memory at once."""
    for start in range(0, len(windows), size):
        yield windows[start : start + size]


def micro_size(asked: int | None, length: int) -> int:
    """Windows at once: what was asked for, or as many as make 4096 tokens."""
    return asked or max(1, _MICRO_tokens // length)


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
