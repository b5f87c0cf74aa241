"""GPTQ's update of a whole weight, or of all experts of a layer at once: r c^2 FLOP in float32, were there no walk."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.algorithms.factor import factored
from optcore.algorithms.gptq_descent import descend
from optcore.algorithms.lattice import Lattice
from optcore.algorithms.rounding import grid_of
from optcore.schemes import PRESETS

ARGS = PRESETS["int4"].weights
DAMPING = 0.01
STEP = 0.4
"""Of values that are N(0, 1)."""


def cases(sizes: Sizes) -> Iterator[Case]:
    """Weights as they are, then experts."""
    for experts, rows, columns in (*((1, *matrix) for matrix in sizes.matrices), sizes.experts):
        yield Case(
            "GPTQ update INT4", times(*([experts] if experts > 1 else []), rows, columns), "float32",
            experts * rows * columns**2, partial(_prepare, experts, rows, columns), tolerance=1e-3,
        )  # fmt: skip


def _prepare(experts: int, rows: int, columns: int, device: torch.device) -> Work:
    """The result is the loss: a sum that ends at a tie may be rounded either way, and all behind it in its output then
    comes out otherwise, on the whole no worse."""
    weight_EKN = normal(device, experts, columns, rows, dtype=torch.float32)
    mixing_KK = normal(device, columns, columns, dtype=torch.float32, scale=0.5 / columns**0.5).diagonal_scatter(
        torch.ones(columns, device=device)
    )
    gram_KK = mixing_KK.mT @ mixing_KK
    feedback_EKK = factored(gram_KK.unsqueeze(0), DAMPING)[0].expand(experts, -1, -1).contiguous()
    points = Lattice(torch.full((1, 1, 1), STEP, device=device).expand_as(weight_EKN), None, grid_of(ARGS))
    rounded_EKN = weight_EKN.clone()

    def run() -> None:
        rounded_EKN.copy_(weight_EKN)
        descend(weight_EKN, rounded_EKN, feedback_EKK, points, causal=True)

    def loss(_: None) -> torch.Tensor:
        off_EKN = weight_EKN - rounded_EKN
        return (off_EKN * (gram_KK @ off_EKN)).sum((-2, -1))

    return Work(run, loss)
