"""Encoders of ggml's block formats: ours beside the C one, weights a CPU second on one thread, and their errors.

Ours finds scales and codes as a quantization pass does; the C encoder is `ggml_quantize_chunk`. Both get the same
Gaussian weight, once without importance and once with the same one of each input (log-normal). Errors are norms of the
difference over the weight's, each square weighted by the importance. Times are the least of interleaved rounds, in CPU
seconds, so that other work on the machine counts little.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.ggml_encoder import ggml_blocks, ggml_decoded
from optcore.algorithms.codes import decode, encode
from optcore.algorithms.scales import Scales, find_scales
from optcore.schemes import GGML_FORMATS, PRESETS

ROUNDS = 5


class Compared(NamedTuple):
    """One format, with importance or without."""

    name: str
    is_weighted: bool
    ours_error: float
    theirs_error: float
    ours_per_s: float
    """Weights a CPU second."""
    theirs_per_s: float

    def row(self) -> str:
        """One row of the table."""
        return (
            f"| {self.name} | {'yes' if self.is_weighted else 'no'} | {self.theirs_error:.5f} | {self.ours_error:.5f} "
            f"| {self.ours_error / self.theirs_error:.4f} | {self.theirs_per_s / 1e6:.1f} "
            f"| {self.ours_per_s / 1e6:.1f} | {self.ours_per_s / self.theirs_per_s:.2f}x |"
        )


def compare_kquants(rows: int = 256, columns: int = 4096, rounds: int = ROUNDS) -> list[Compared]:
    """Print a Markdown table, two rows a format."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"Gaussian {rows} x {columns}, 1 thread, the least of {rounds} interleaved rounds; M weights a CPU second\n")
    print("| format | importance | C error | ours | ratio | C Mw/s | ours | ratio |")
    print("| :-- | :-- | --: | --: | --: | --: | --: | --: |")
    random = torch.Generator().manual_seed(0)
    weight_NK = torch.randn(rows, columns, generator=random)
    importance_K = torch.randn(columns, generator=random).exp()
    compared = []
    try:
        for name in (name for name in PRESETS if name in GGML_FORMATS):
            for importance in (None, importance_K):
                compared.append(compare_encoders(name, weight_NK, importance, rounds))
                print(compared[-1].row(), flush=True)
    finally:
        torch.set_num_threads(threads)
    return compared


def compare_encoders(name: str, weight_NK: torch.Tensor, importance_K: torch.Tensor | None, rounds: int) -> Compared:
    """Both encoders on one weight."""
    args = PRESETS[name].weights

    def ours() -> tuple[torch.Tensor, Scales]:
        method = "mse" if importance_K is None else "hessian"
        scales = find_scales([weight_NK], args, method, torch.float16, importance_K)[0]
        return encode(weight_NK, scales, args), scales

    seconds = _least([ours, lambda: ggml_blocks(weight_NK, name, importance_K)], rounds)
    theirs_NK = ggml_decoded(ggml_blocks(weight_NK, name, importance_K), name)
    errors = [relative_error(weight_NK, other_NK, importance_K) for other_NK in (decode(*ours(), args), theirs_NK)]
    speeds = [weight_NK.numel() / taken for taken in seconds]
    return Compared(name, importance_K is not None, errors[0], errors[1], speeds[0], speeds[1])


def relative_error(weight_NK: torch.Tensor, other_NK: torch.Tensor, importance_K: torch.Tensor | None) -> float:
    """Norm of the difference over the weight's, inputs weighted by their importance; in float64."""
    weights_K = torch.ones(weight_NK.shape[1]) if importance_K is None else importance_K
    weight_NK, other_NK, weights_K = weight_NK.double(), other_NK.double(), weights_K.double()
    error, energy = ((matrix.square() * weights_K).sum() for matrix in (other_NK - weight_NK, weight_NK))
    return float((error / energy).sqrt())


def _least(sides: list[Callable[[], object]], rounds: int) -> list[float]:
    least = [float("inf")] * len(sides)
    for _ in range(rounds):
        for side, run in enumerate(sides):
            started = time.process_time()
            run()
            least[side] = min(least[side], time.process_time() - started)
    return least
