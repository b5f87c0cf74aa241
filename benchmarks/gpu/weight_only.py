"""Products with stored 4-bit weights as decoding takes them: bound by reading the weight once."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.case import Case, Goal, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.codes import encode
from optcore.algorithms.packing import pack
from optcore.algorithms.scales import find_scales
from optcore.kernels.weight_only import weight_only_matmul
from optcore.schemes import PRESETS

ROWS = {1: Goal(3.0, "bf16"), 16: None}
"""Of x, and what is aimed at."""
BYTES = {"int4": 0.5 + 2 / 128, "nvfp4": 0.5 + 1 / 16}
"""Of a stored weight."""


def cases(sizes: Sizes) -> Iterator[Case]:
    """One token and several."""
    for outputs, inputs in sizes.matrices:
        for scheme, stored in BYTES.items():
            for rows, goal in ROWS.items():
                yield Case(
                    f"{scheme} x bf16", times(rows, inputs, outputs), "copy",
                    stored * outputs * inputs + 2 * rows * (outputs + inputs),
                    partial(_prepare, scheme, rows, outputs, inputs), goal, tolerance=4e-3,
                    rivals={"bf16": partial(plain_product, rows, outputs, inputs)},
                )  # fmt: skip


def plain_product(rows: int, outputs: int, inputs: int, device: torch.device) -> Work:
    """The library's, in bfloat16."""
    x_MK, weight_NK = normal(device, rows, inputs), normal(device, outputs, inputs, scale=0.02)
    return Work(lambda: x_MK @ weight_NK.mT)


def _prepare(scheme: str, rows: int, outputs: int, inputs: int, device: torch.device) -> Work:
    args = PRESETS[scheme].weights
    weight_NK = normal(device, outputs, inputs, scale=0.02).float()
    (scales,) = find_scales([weight_NK], args, "max", torch.bfloat16)
    given: tuple[Any, ...] = normal(device, rows, inputs), pack(encode(weight_NK, scales, args), scales, args), args
    return Work(lambda: weight_only_matmul(*given))
