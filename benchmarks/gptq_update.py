"""The GPTQ update of one square weight: ours, the column-by-column loop, and the arithmetic that neither can avoid.

The column loop is the one of the GPTQ paper (arXiv:2210.17323, algorithm 1), as toolkits run it: weight [outputs,
inputs], blocks of 128 columns, each column's error taken from the rest of its block at once, the inverse's Cholesky
factor given. Both sides get H's factor, round to the same INT4 groups of 128 with the same scales, in the same order,
and are timed in turns in one process on one thread. The floor is r * c^2 FLOP at the speed of a float32 matrix product
of the same size, measured in the same turns.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from optcore.algorithms.factor import damped, factored
from optcore.algorithms.gptq_descent import descend
from optcore.algorithms.lattice import Lattice, lattice
from optcore.algorithms.scales import find_scales
from optcore.schemes import PRESETS

ROUNDS = 9
BLOCK_columns = 128
DAMPING = 0.01
ARGS = PRESETS["int4"].weights


class Timing(NamedTuple):
    """Medians of one size."""

    size: int
    ours_s: float
    column_loop_s: float
    floor_s: float
    loss_ratio: float
    """Ours over the column loop's."""

    @property
    def speedup(self) -> float:
        """How often ours fits into the column loop's time."""
        return self.column_loop_s / self.ours_s

    def row(self) -> str:
        """One row of the table."""
        return (
            f"| {self.size} | {self.column_loop_s * 1e3:.1f} ms | {self.ours_s * 1e3:.1f} ms | {self.speedup:.2f}x "
            f"| {self.column_loop_s / self.floor_s:.1f} | {self.ours_s / self.floor_s:.1f} | {self.loss_ratio:.5f} |"
        )


def compare_gptq_updates(sizes: tuple[int, ...] = (512, 2048), rounds: int = ROUNDS) -> list[Timing]:
    """Print a Markdown table, one row a size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = [_compare(size, rounds) for size in sizes]
    finally:
        torch.set_num_threads(threads)
    print(f"GPTQ update of a square weight, INT4 groups of 128, 1 thread, median of {rounds} interleaved rounds\n")
    print("| size | column loop | ours | speedup | column loop / floor | ours / floor | loss ratio |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for timing in timings:
        print(timing.row(), flush=True)
    return timings


@torch.no_grad()
def _compare(size: int, rounds: int) -> Timing:
    torch.manual_seed(size)
    weight_NK = torch.randn(size, size) * 0.02
    inputs_TK = torch.randn(2 * size, size) @ (torch.eye(size) + torch.randn(size, size) * 0.5 / size**0.5)
    gram_KK = inputs_TK.mT @ inputs_TK / len(inputs_TK)
    points_NK = lattice(find_scales([weight_NK], ARGS, "max", torch.bfloat16)[0], ARGS, (size, size))
    points_KN = Lattice(points_NK.step_NK.mT.contiguous(), None, points_NK.grid)
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram_KK, DAMPING)))
    upper_KK = torch.linalg.cholesky(inverse_KK, upper=True)
    feedback_KK = factored(gram_KK.unsqueeze(0), DAMPING)[0][0]

    def ours() -> torch.Tensor:
        rounded_KN = weight_NK.mT.contiguous()
        descend(rounded_KN.clone(), rounded_KN, feedback_KK, points_KN, causal=True)
        return rounded_KN.mT

    def theirs() -> torch.Tensor:
        return _column_loop(weight_NK.clone(), upper_KK, points_NK.step_NK)

    seconds = _interleaved([ours, theirs, lambda: weight_NK @ gram_KK], rounds)
    losses = [_loss(weight_NK - rounded(), gram_KK) for rounded in (ours, theirs)]
    # The product took 2 * size^3 FLOP; the update needs half of that.
    return Timing(size, seconds[0], seconds[1], seconds[2] / 2, losses[0] / losses[1])


def _column_loop(weight_NK: torch.Tensor, upper_KK: torch.Tensor, step_NK: torch.Tensor) -> torch.Tensor:
    low, high = -(2 ** (ARGS.bits - 1)), 2 ** (ARGS.bits - 1) - 1
    rounded_NK = torch.zeros_like(weight_NK)
    for start in range(0, weight_NK.shape[1], BLOCK_columns):
        stop = min(start + BLOCK_columns, weight_NK.shape[1])
        block_NB, inner_BB = weight_NK[:, start:stop].clone(), upper_KK[start:stop, start:stop]
        errors_NB = torch.zeros_like(block_NB)
        for column in range(stop - start):
            value_N, step_N = block_NB[:, column], step_NK[:, start + column]
            nearest_N = (value_N / step_N).round().clamp(low, high) * step_N
            rounded_NK[:, start + column] = nearest_N
            error_N = (value_N - nearest_N) / inner_BB[column, column]
            block_NB[:, column:] -= error_N.unsqueeze(1) @ inner_BB[column, column:].unsqueeze(0)
            errors_NB[:, column] = error_N
        weight_NK[:, stop:] -= errors_NB @ upper_KK[start:stop, stop:]
    return rounded_NK


def _interleaved(sides: list[Callable[[], torch.Tensor]], rounds: int) -> list[float]:
    """Median seconds of each; the first round warms up and does not count."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds + 1):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            taken.append(time.perf_counter() - started)
    return [median(taken[1:]) for taken in seconds]


def _loss(difference_NK: torch.Tensor, gram_KK: torch.Tensor) -> float:
    return float((difference_NK.double() @ gram_KK.double() * difference_NK).sum())


if __name__ == "__main__":
    compare_gptq_updates()
