"""Every operator that is measured."""

from collections.abc import Iterator

from benchmarks.gpu import descent, gram, linear_kl, super_blocks
from benchmarks.gpu.case import Case
from benchmarks.gpu.sizes import Sizes

OPERATORS = (descent, gram, linear_kl, super_blocks)


def cases(sizes: Sizes) -> Iterator[Case]:
    """In order of need."""
    for operator in OPERATORS:
        yield from operator.cases(sizes)
