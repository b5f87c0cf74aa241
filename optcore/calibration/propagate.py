"""The calibration set on its way through the model: what a layer is measured on, and what the next one will be.

`original`: each layer runs once, as it was. `quantized`: once as it was, to be measured on what the quantized layers
before it give, and once quantized. With an asymmetric target the original model's states go along beside them, and a
layer's groups are quantized one after the other, each measured on what those before it leave of its input.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.calibration.statistics import InputStatistics, Observer
from optcore.calibration.text import Texts
from optcore.importance import Importance
from optcore.streaming.decoder import Decoder
from optcore.streaming.hidden import HiddenStates

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.ptq import Quantizing

Statistics = dict[tuple[str, ...], InputStatistics]
Quantized = Callable[[], AbstractContextManager[None]]
"""The layer in its quantized form, for as long as the context lasts."""


def calibrated(run: "Run", decoder: Decoder, technique: "Quantizing") -> "Propagation":
    """The calibration set as hidden states in front of the first layer."""
    windows_ST = calibration_windows(run, decoder)
    states = HiddenStates(decoder, windows_ST, run.scratch)
    original = HiddenStates(decoder, windows_ST, run.scratch) if technique.feedback.asymmetry else None
    return Propagation(decoder, states, original, sequential=technique.propagate == "quantized")


def calibration_windows(run: "Run", decoder: Decoder) -> torch.Tensor:
    """Token ids [samples, T] of the calibration set, as many and as long as there are; a notice where that is less."""
    longest = decoder.longest_sequence
    if run.calibration.sequence_length > longest:
        run.notice(f"calibration.sequence_length cut to {longest}, the most that the model holds")
    windows_ST = Texts(run.source, run.calibration, run.data_files).calibration_windows(longest)
    if len(windows_ST) < run.calibration.samples:
        run.notice(f"the data set has {len(windows_ST)} windows, not {run.calibration.samples}")
    return windows_ST


class Propagation:
    """Hidden states in front of the current layer."""

    def __init__(
        self, decoder: Decoder, states: HiddenStates, original: HiddenStates | None, *, sequential: bool
    ) -> None:
        self._decoder = decoder
        self._states = states
        self._original = original
        self._sequential = sequential

    def measure(
        self,
        index: int,
        layer: nn.Module,
        groups: Sequence[Sequence[str]],
        first: Sequence[Sequence[str]],
        *,
        gram: bool,
        cache: object,
    ) -> Statistics:
        """Statistics of the inputs of a layer as it was; `cache` sees keys and values.

        The groups of `first` are quantized on these; others are measured again, and only then in both models.
        """
        if self._sequential:
            observer = Observer(layer, groups, gram=gram, squares=not gram, cross=first if self._original else ())
            return self._observed(index, layer, observer, nullcontext, cache)
        observer = Observer(layer, groups, gram=gram, squares=not gram)
        with observer.measuring():
            self._states.advance(index, layer, cache)
        return observer.finished()

    def measure_again(
        self, index: int, layer: nn.Module, groups: Sequence[Sequence[str]], quantized: Quantized
    ) -> Statistics:
        """Statistics of the inputs of some groups, with the groups before them quantized."""
        observer = Observer(layer, groups, gram=True, cross=groups if self._original else ())
        return self._observed(index, layer, observer, quantized, None)

    def advance(self, index: int, layer: nn.Module, quantized: Quantized) -> None:
        """Go past a layer, in `quantized` form where the next is measured on what quantized ones give."""
        if self._sequential:
            with quantized():
                self._states.advance(index, layer)

    def advance_original(self, index: int, layer: nn.Module) -> None:
        """Take the original model's states, where they go along, past the layer as it was."""
        if self._original:
            self._original.advance(index, layer)

    def before_head(self) -> Importance:
        """Of what the head is given of the calibration set, once the last layer lies behind."""
        sum_K, tokens = torch.zeros(0), 0
        for _, state in self._states.states():
            given_TK = self._decoder.before_head(state.hidden_BTH).flatten(0, 1).float()
            squares_K = given_TK.square().sum(0)
            sum_K, tokens = (sum_K + squares_K if tokens else squares_K), tokens + len(given_TK)
        return Importance(sum_K / tokens, tokens)

    def skip(self, index: int, layer: nn.Module, quantized: Quantized) -> None:
        """Go past a layer that was finished before this process started."""
        if not self._sequential:
            self._states.advance(index, layer)
        self.advance_original(index, layer)
        self.advance(index, layer, quantized)

    def _observed(
        self, index: int, layer: nn.Module, observer: Observer, quantized: Quantized, cache: object
    ) -> Statistics:
        """Batch by batch, so that both models' inputs of the same tokens are in memory together."""
        originals = (state for _, state in self._original.states()) if self._original else repeat(None)
        for (_, state), original in zip(self._states.states(), originals, strict=False):
            if original is not None:
                with observer.remembering():
                    self._decoder.forward(index, layer, original)
            with quantized(), observer.measuring(to_the_end=cache is not None):
                self._decoder.forward(index, layer, state, cache)
        return observer.finished()
