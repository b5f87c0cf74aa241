"""The FP8 product with a scale for each row of both, rounding of its inputs included."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Goal, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.weight_only import plain_product
from optcore.algorithms.rounding import E4M3_MAX, round_e4m3
from optcore.kernels.fp8_matmul import fp8_matmul


def cases(sizes: Sizes) -> Iterator[Case]:
    """As many tokens as a prefill has."""
    rows = sizes.head[0]
    for outputs, inputs in sizes.matrices:
        yield Case(
            "fp8 x fp8, rounding included", times(rows, inputs, outputs), "bf16", 2 * rows * outputs * inputs,
            partial(_prepare, rows, outputs, inputs), Goal(1.65, "bf16"), tolerance=4e-3, has_kernel=False,
            rivals={"bf16": partial(plain_product, rows, outputs, inputs)},
        )  # fmt: skip


def _prepare(rows: int, outputs: int, inputs: int, device: torch.device) -> Work:
    x_MK, weight_NK = normal(device, rows, inputs), normal(device, outputs, inputs, scale=0.02).float()
    scale_N1 = (weight_NK.abs().amax(1, keepdim=True) / E4M3_MAX).to(torch.bfloat16)
    codes_NK = round_e4m3(weight_NK / scale_N1.float())
    return Work(lambda: fp8_matmul(x_MK, codes_NK, scale_N1))
