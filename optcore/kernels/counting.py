"""How often kernels are launched and how much memory they are given, so that a regression shows without a GPU."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

_open: list["Counts"] = []


class Counts:
    """What was launched while this was open."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        """Launches by the kernel's name."""
        self.bytes: Counter[str] = Counter()
        """Bytes of the tensors that they were given, each counted once a launch."""


@contextmanager
def counting() -> Iterator[Counts]:
    """Count launches until the end of the block."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


def count_launch(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Add a launch to all that count now."""
    for counts in _open:
        counts.launches[name] += 1
        counts.bytes[name] += sum(tensor.nbytes for tensor in tensors)
