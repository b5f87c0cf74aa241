"""Fake quantization of weights with known scales: 16 bits in, 16 bits out."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.case import Case, Goal, Work, compiled, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.scales import find_scales
from optcore.kernels.weights import Rounded, rounded_weight
from optcore.schemes import PRESETS

SCHEMES = ("fp8", "int8", "int4", "nvfp4", "mxfp4")
COMPILED = ("int4", "nvfp4")
"""Beside their definition as torch compiles it, at one shape: compiling takes longer than measuring."""


def cases(sizes: Sizes) -> Iterator[Case]:
    """Each format of weights."""
    for rows, columns in sizes.all_matrices:
        for scheme in SCHEMES:
            arguments = partial(_arguments, scheme, rows, columns)
            is_compiled = scheme in COMPILED and (rows, columns) == sizes.matrices[0]
            yield Case(
                f"fake-quant weights {scheme}", times(rows, columns), "copy", 4 * rows * columns,
                partial(_prepare, arguments), Goal(0.88),
                rivals={"torch.compile": compiled(rounded_weight, arguments)} if is_compiled else {},
            )  # fmt: skip


def _prepare(arguments: partial[tuple[Any, ...]], device: torch.device) -> Work:
    given = arguments(device)

    def points(rounded: Rounded) -> torch.Tensor:
        return rounded.weight_NK

    return Work(lambda: rounded_weight(*given), points)


def _arguments(scheme: str, rows: int, columns: int, device: torch.device) -> tuple[Any, ...]:
    weight_NK, args = normal(device, rows, columns, scale=0.02), PRESETS[scheme].weights
    (scales,) = find_scales([weight_NK.float()], args, "max", torch.bfloat16)
    return weight_NK, scales, args, torch.bfloat16
