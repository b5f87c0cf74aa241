"""What a model loses with a part of it: the divergence of what is left, the part replaced or left out.

Legend: S windows, T tokens, H hidden size, B windows of a batch, P positions of a part, V vocabulary.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from optcore.calibration.propagate import calibration_windows
from optcore.evaluate.positions import only, parts
from optcore.streaming.hidden import HiddenStates, IN_MEMORY_bytes, allocate
from optcore.training.divergences import forward_kl

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder


def mean_divergences(whole: HiddenStates, others_STH: Iterable[torch.Tensor]) -> list[float]:
    """KL(whole || other), nats a token, of each of other models' states after the last layer."""
    others, decoder = list(others_STH), whole.decoder
    sums, tokens = [0.0] * len(others), 0
    for rows, state in whole.states():
        windows, length = state.hidden_BTH.shape[:2]
        tokens += windows * length
        for part in parts(windows, range(length)):
            logits_NV = decoder.logits(only(state, part)).flatten(0, -2)
            for place, hidden_STH in enumerate(others):
                own = state._replace(hidden_BTH=hidden_STH[rows].to(decoder.device))
                own_NV = decoder.logits(only(own, part)).flatten(0, -2)
                sums[place] += float(forward_kl(own_NV, logits_NV).double().sum())
    return [total / tokens for total in sums]


@torch.no_grad()
def costs(run: "Run", decoder: "Decoder", span: int = 1) -> list[float]:
    """For each run of `span` layers, the KL of the model without it, nats a token of calibration text.

    Each layer is read once and called for every run before it, so the work grows with the square of the depth; as many
    states of the calibration set as there are runs are held, on disk when large.
    """
    whole = HiddenStates(decoder, calibration_windows(run, decoder), run.scratch)
    runs = len(decoder) - span + 1
    # All at once: what does not fit is refused before the walk, and what is large goes to disk together.
    without = allocate((runs, *whole.hidden_STH.shape), whole.hidden_STH.dtype, run.scratch, IN_MEMORY_bytes)
    for index in range(len(decoder)):
        if index < runs:
            without[index] = whole.hidden_STH
        with decoder.layer(index) as layer:
            for hidden_STH in without[: max(0, index - span + 1)]:
                whole.through(index, layer, hidden_STH, hidden_STH)
            whole.advance(index, layer)
        run.progress("calibrating", index + 1, len(decoder))
    return mean_divergences(whole, without)
