"""The Gram update: half the arithmetic of a product of all columns with all."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Goal, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.kernels.gram import accumulate


def cases(sizes: Sizes) -> Iterator[Case]:
    """The inputs of a block's projections, and those of an expert."""
    for columns in dict.fromkeys((*(columns for _, columns in sizes.matrices), sizes.experts[2])):
        yield Case(
            "Gram update", times(sizes.tokens, columns), "bf16", sizes.tokens * columns**2,
            partial(_prepare, sizes.tokens, columns), Goal(0.6), tolerance=1e-5,
            rivals={"product of all, float32": partial(_upcast, sizes.tokens, columns)},
        )  # fmt: skip


def _prepare(tokens: int, columns: int, device: torch.device) -> Work:
    x_TK = normal(device, tokens, columns)
    gram_KK = torch.zeros(columns, columns, device=device)
    return Work(lambda: accumulate(gram_KK, x_TK), lambda _: gram_KK.triu())


def _upcast(tokens: int, columns: int, device: torch.device) -> Work:
    """What toolkits do: both triangles, of float32 copies."""
    x_TK = normal(device, tokens, columns)
    gram_KK = torch.zeros(columns, columns, device=device)
    return Work(lambda: gram_KK.addmm_(x_TK.float().mT, x_TK.float()))
