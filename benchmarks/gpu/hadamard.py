"""The block Hadamard transform: float32 in, float32 out, as the engine has it."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Goal, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.kernels.hadamard import hadamard


def cases(sizes: Sizes) -> Iterator[Case]:
    """Blocks as wide as a head."""
    for rows, columns in sizes.all_matrices:
        yield Case(
            f"Hadamard, blocks of {sizes.head_width}", times(rows, columns), "copy", 8 * rows * columns,
            partial(_prepare, rows, columns, sizes.head_width), Goal(0.75),
        )  # fmt: skip


def _prepare(rows: int, columns: int, block: int, device: torch.device) -> Work:
    x = normal(device, rows, columns, dtype=torch.float32)
    return Work(lambda: hadamard(x, block))
