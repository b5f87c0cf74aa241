"""The search for ggml's block scales: bound by arithmetic, so its share of the copy only says how far."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.scales import Scales, find_scales
from optcore.schemes import PRESETS

FORMATS = ("q4_k", "q6_k")


def cases(sizes: Sizes) -> Iterator[Case]:
    """An affine format and a symmetric one."""
    rows, columns = sizes.matrices[-1]
    for name in FORMATS:
        read = 4 * rows * columns
        prepare = partial(_prepare, name, rows, columns)
        yield Case(f"search {name}", times(rows, columns), "copy", read, prepare, tolerance=1e-4)


def _prepare(name: str, rows: int, columns: int, device: torch.device) -> Work:
    """The result is the error: equally good scales are as good as one another."""
    weight_NK, args = normal(device, rows, columns, dtype=torch.float32, scale=0.02), PRESETS[name].weights

    def errors(found: list[Scales]) -> torch.Tensor:
        return (weight_NK - fake_quantize(weight_NK, found[0], args)).square().sum()

    return Work(lambda: find_scales([weight_NK], args, "mse", torch.float16), errors)
