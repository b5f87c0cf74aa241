"""How much decoder layers, or runs of them, turn the hidden states of calibration text.

Legend: S windows, T tokens, H hidden size.
"""

from typing import TYPE_CHECKING

import torch

from optcore.calibration.propagate import calibration_windows
from optcore.streaming.hidden import HiddenStates, IN_MEMORY_bytes, allocate

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder


@torch.no_grad()
def influences(run: "Run", decoder: "Decoder", span: int = 1) -> list[float]:
    """For each run of `span` layers, 1 - the mean over tokens of the cosine between its input and its output.

    Block influence for single layers (ShortGPT, arXiv:2403.03853, eq. 1). The sum runs in float64 over all tokens, so
    how windows are batched does not matter. `span` + 1 states of the calibration set are held, on disk when large.
    """
    states = HiddenStates(decoder, calibration_windows(run, decoder), run.scratch)
    before = allocate((span, *states.hidden_STH.shape), states.hidden_STH.dtype, run.scratch, IN_MEMORY_bytes)
    found: list[float] = []
    for index in range(len(decoder)):
        before[index % span] = states.hidden_STH
        with decoder.layer(index) as layer:
            states.advance(index, layer)
        if index >= span - 1:
            found.append(1 - _mean_cosine(before[(index + 1) % span], states.hidden_STH))
        run.progress("calibrating", index + 1, len(decoder))
    return found


def _mean_cosine(x_STH: torch.Tensor, y_STH: torch.Tensor) -> float:
    """Over all tokens, window by window."""
    pairs = zip(x_STH, y_STH, strict=True)
    sums = [torch.cosine_similarity(x_TH.double(), y_TH.double(), dim=-1).sum().item() for x_TH, y_TH in pairs]
    return sum(sums) / (x_STH.shape[0] * x_STH.shape[1])
