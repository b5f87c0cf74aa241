"""One model on its way through its layers: as it is, quantized, or with the plain scales of the same formats."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import probe_state
from optcore.streaming.hidden import HiddenStates, IN_MEMORY_bytes
from optcore.streaming.simulate import Simulation


class Place(NamedTuple):
    """Where a batch lies in the text: which tensor of tokens, and which rows of it."""

    group: int
    rows: slice


class Walked:
    """The hidden states of all text in one model; tokens [S, T] come in groups of one length each.

    Several may share a decoder, whose layer is then in memory once for all of them.
    """

    def __init__(self, decoder: Decoder, tokens: Sequence[torch.Tensor], scratch: Path) -> None:
        self.decoder = decoder
        in_memory_bytes = IN_MEMORY_bytes // len(tokens)
        self._states = [HiddenStates(decoder, group_ST, scratch, in_memory_bytes) for group_ST in tokens]

    @property
    def hidden(self) -> list[torch.Tensor]:
        """The states [S, T, H] of each group, after the layers so far."""
        return [states.hidden_STH for states in self._states]

    def advance(self, index: int, layer: nn.Module) -> None:
        """Replace all states by the layer's output."""
        self._through(index, layer)

    def logits(self, state: State) -> torch.Tensor:
        """What the model predicts from its last hidden states, [B, T, V]."""
        return self.decoder.logits(state)

    def batches(self) -> Iterator[tuple[Place, State]]:
        """States to ask the decoder's logits of, with the place of their tokens."""
        for group, states in enumerate(self._states):
            yield from ((Place(group, rows), state) for rows, state in states.states())

    def _through(self, index: int, layer: nn.Module, cache: object = None) -> None:
        for states in self._states:
            states.advance(index, layer, cache)


class Quantized(Walked):
    """The model that a quantized checkpoint stands for, on the decoder of its dense weights."""

    def __init__(self, decoder: Decoder, simulation: Simulation, tokens: Sequence[torch.Tensor], scratch: Path) -> None:
        with simulation.around(decoder):
            super().__init__(decoder, tokens, scratch)
        self._simulation = simulation

    def logits(self, state: State) -> torch.Tensor:
        """The same with the head as it was quantized."""
        with self._simulation.around(self.decoder):
            return super().logits(state)

    def advance(self, index: int, layer: nn.Module) -> None:
        """The same through the layer as it was quantized; a model that lets tokens leave asks its head there."""
        with self._simulation.around(self.decoder), self._simulation.applied(self.decoder, index, layer):
            self._through(index, layer, self._simulation.cache(index))


class PlainlyQuantized(Quantized):
    """The same formats with max scales and rounding to nearest: what a search is compared with. Embeddings and head are
    the result's own, so that the layers alone make the difference."""

    def __init__(self, decoder: Decoder, simulation: Simulation, tokens: Sequence[torch.Tensor], scratch: Path) -> None:
        super().__init__(decoder, simulation, tokens, scratch)
        self._probe = probe_state(decoder)

    def advance(self, index: int, layer: nn.Module) -> None:
        """The same through the layer as it would be quantized without a search."""
        with self._simulation.around(self.decoder), self._simulation.plain(self.decoder, index, layer, self._probe):
            self._through(index, layer, self._simulation.cache(index))
