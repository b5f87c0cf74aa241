"""Whether ONNX Runtime computes with a written graph what was simulated.

The weights are compared bit for bit elsewhere. What remains is arithmetic: sums in another order move a value by some
units in the last place, and one that lies there between two codes gets the other code. That moves later values by a
step and more of them to other codes, so that after some layers the two computations are two draws of the same rounding
noise: sqrt(2) of it apart in the root mean square, and 2 leaves room for its spread over few logits. An operator in
the wrong place moves logits by as much as they are, which is many times that. Half precision is judged by what torch's
own does, which sums in another order too.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch

from optcore.errors import ExportMismatch
from optcore.onnx.trace import Inputs, inputs_of
from optcore.quantization import load_quantization
from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import as_quantized

_LENGTHS = (5, 16)
_TEXTS = 8
_FLOAT = 1e-4  # of the largest logit: what sums of float32 in another order stay far below
_DRAWS = 2.0  # of what rounding moved the logits by
_HALF = 4.0


class Call(NamedTuple):
    """One call of the model."""

    inputs: Inputs
    logits: torch.Tensor
    """Simulated, [B, labels] or [B, T, V]."""


class Expected(NamedTuple):
    """What a graph should compute, and how far it may be from that."""

    calls: Sequence[Call]
    noise: float
    """Root mean square of what rounding alone may move a logit by, beyond the order of sums."""


def expected_logits(decoder: Decoder, *, is_half: bool) -> Expected:
    """What the model, its layers all in memory, says of texts of two lengths drawn at random, the shorter padded."""
    calls = [_inputs(decoder, min(length, decoder.longest_sequence)) for length in _LENGTHS]
    dense = [_logits(decoder, inputs) for inputs in calls]
    with as_quantized(decoder):
        simulated = [_logits(decoder, inputs) for inputs in calls]
        half = [_half_logits(decoder, inputs) for inputs in calls] if is_half else simulated
    flips = _DRAWS * _distance(simulated, dense) if _rounds_inputs(decoder.reader.folder) else 0.0
    noise = flips + _HALF * _distance(half, simulated)
    return Expected([Call(*pair) for pair in zip(calls, simulated, strict=True)], noise)


def check_run(path: Path, expected: Expected) -> float:
    """Root mean square of the differences of logits. Raises `ExportMismatch` for more than arithmetic explains."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    computed = []
    for call in expected.calls:
        (logits,) = session.run(["logits"], {name: value.numpy() for name, value in call.inputs.items()})
        if logits.shape != tuple(call.logits.shape):
            raise ExportMismatch(f"ONNX Runtime gives logits of shape {logits.shape}, not {tuple(call.logits.shape)}")
        computed.append(torch.from_numpy(logits.astype(np.float32)))
    simulated = [call.logits for call in expected.calls]
    error, largest = _distance(computed, simulated), max(float(one.abs().max()) for one in simulated)
    if not error <= _FLOAT * max(largest, 1.0) + expected.noise:
        raise ExportMismatch(
            f"ONNX Runtime's logits differ from the simulated ones by {error:.3g} (root mean square), where rounding "
            f"explains {expected.noise:.3g} and the largest is {largest:.3g}"
        )
    return error


def _rounds_inputs(folder: Path) -> bool:
    description = load_quantization(folder)
    return description is not None and any(scheme.activations for scheme in description.schemes)


def _inputs(decoder: Decoder, length: int) -> Inputs:
    drawn, vocabulary = torch.Generator().manual_seed(length), decoder.model.config.vocab_size
    tokens_BT = torch.randint(vocabulary, (_TEXTS, length), generator=drawn)
    attended_BT = torch.ones_like(tokens_BT)
    attended_BT[-1, (length + 1) // 2 :] = 0
    return inputs_of(decoder.model, tokens_BT, attended_BT)


@torch.no_grad()
def _logits(decoder: Decoder, inputs: Inputs) -> torch.Tensor:
    return decoder.model(**inputs).logits.float()


def _half_logits(decoder: Decoder, inputs: Inputs) -> torch.Tensor:
    """Of a copy, whose hooks go on rounding inputs."""
    with torch.no_grad():
        return deepcopy(decoder.model).half()(**inputs).logits.float()


def _distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Root mean square over all logits."""
    squares = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]).square()
    return float(squares.mean().sqrt())
