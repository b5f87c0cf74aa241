"""The calibration set on its way through the model: what a layer is measured on, and what the next one will be.

`original`: each layer runs once, as it was. `quantized`: once as it was, to be measured on what the quantized layers
before it give, and once quantized. With an asymmetric target the original model's states go along beside them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import nn

from optcore.calibration.statistics import InputStatistics, Observer
from optcore.calibration.text import Texts
from optcore.streaming.decoder import Decoder
from optcore.streaming.hidden import HiddenStates

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.ptq import Quantizing

Statistics = dict[tuple[str, ...], InputStatistics]


def calibrated(run: "Run", decoder: Decoder, technique: "Quantizing") -> "Propagation":
    """The calibration set as hidden states in front of the first layer."""
    longest = decoder.longest_sequence
    if run.calibration.sequence_length > longest:
        run.notice(f"calibration.sequence_length cut to {longest}, the most that the model holds")
    windows_ST = Texts(run.source, run.calibration, run.data_files).calibration_windows(longest)
    if len(windows_ST) < run.calibration.samples:
        run.notice(f"the data set has {len(windows_ST)} windows, not {run.calibration.samples}")
    states = HiddenStates(decoder, windows_ST, run.scratch)
    original = HiddenStates(decoder, windows_ST, run.scratch) if technique.gptq.asymmetry else None
    return Propagation(decoder, states, original, sequential=technique.propagate == "quantized")


class Propagation:
    """Hidden states in front of the current layer."""

    def __init__(
        self, decoder: Decoder, states: HiddenStates, original: HiddenStates | None, *, sequential: bool
    ) -> None:
        self._decoder = decoder
        self._states = states
        self._original = original
        self._sequential = sequential
        self._outputs_are_ahead = False

    def measure(
        self, index: int, layer: nn.Module, groups: Sequence[Sequence[str]], *, gram: bool, cache: object
    ) -> Statistics:
        """Statistics of the layer's inputs; `cache` sees keys and values."""
        observer = Observer(layer, groups, gram=gram, cross=self._original is not None)
        if self._sequential:
            self._observe(index, layer, observer, cache)
        else:
            with observer.measuring():
                self._states.advance(index, layer, cache)
        return observer.finished()

    def advance(self, index: int, layer: nn.Module, quantized: AbstractContextManager[None] | None = None) -> None:
        """Go past a measured layer, in `quantized` form where the next is measured on what quantized ones give."""
        if self._sequential:
            with quantized or nullcontext():
                self._states.advance(index, layer)

    def skip(self, index: int, layer: nn.Module, quantized: AbstractContextManager[None]) -> None:
        """Go past a layer that was finished before this process started."""
        if self._original:
            self._original.advance(index, layer)
        with quantized if self._sequential else nullcontext():
            self._states.advance(index, layer)

    def _observe(self, index: int, layer: nn.Module, observer: Observer, cache: object) -> None:
        """Batch by batch, so that both models' inputs of the same tokens are in memory together."""
        if self._original is None:
            for _, state in self._states.states():
                with observer.measuring():
                    self._decoder.forward(index, layer, state, cache)
            return
        for (rows, original), (_, state) in zip(self._original.states(), self._states.states(), strict=True):
            with observer.remembering():
                after = self._decoder.forward(index, layer, original)
            self._original.hidden_STH[rows] = after.hidden_BTH.cpu()
            with observer.measuring():
                self._decoder.forward(index, layer, state, cache)
