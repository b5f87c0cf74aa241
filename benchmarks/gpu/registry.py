"""Every operator that is measured."""

from collections.abc import Iterator

from benchmarks.gpu import (
    activations,
    descent,
    fp8_matmul,
    gram,
    hadamard,
    linear_kl,
    quantize,
    super_blocks,
    weight_only,
    weights,
)
from benchmarks.gpu.case import Case
from benchmarks.gpu.sizes import Sizes

OPERATORS = (descent, gram, quantize, weights, activations, linear_kl, weight_only, fp8_matmul, hadamard, super_blocks)


def cases(sizes: Sizes) -> Iterator[Case]:
    """In order of need."""
    for operator in OPERATORS:
        yield from operator.cases(sizes)
