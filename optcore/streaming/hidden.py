"""Hidden states of a whole calibration set between two layers, on disk when they are large."""

from collections.abc import Iterator
from pathlib import Path

import torch

from optcore.streaming.decoder import Decoder, State

IN_MEMORY_bytes = 2 * 2**30
BATCH_tokens = 4096


class HiddenStates:
    """The states of all windows [S, T, H], advanced layer by layer in place."""

    def __init__(self, decoder: Decoder, tokens_ST: torch.Tensor, scratch: Path) -> None:
        self.decoder = decoder
        self.batch_windows = max(1, BATCH_tokens // tokens_ST.shape[1])
        first = decoder.embed(tokens_ST[: self.batch_windows])
        self._arguments = {first.hidden_BTH.shape[0]: first.arguments}
        shape = (*tokens_ST.shape, first.hidden_BTH.shape[-1])
        self.hidden_STH = allocate(shape, decoder.dtype, scratch)
        for rows in self._batches():
            self.hidden_STH[rows] = decoder.embed(tokens_ST[rows]).hidden_BTH.cpu()
        last = len(tokens_ST) % self.batch_windows
        if last:
            self._arguments[last] = decoder.embed(tokens_ST[-last:]).arguments

    def states(self) -> Iterator[tuple[slice, State]]:
        """Batches as states to call a layer with."""
        for rows in self._batches():
            hidden = self.hidden_STH[rows].to(self.decoder.device)
            yield rows, State(hidden, self._arguments[hidden.shape[0]])

    def advance(self, index: int, layer: torch.nn.Module, cache: object = None) -> None:
        """Replace every window's state by the layer's output."""
        for rows, state in self.states():
            self.hidden_STH[rows] = self.decoder.forward(index, layer, state, cache).hidden_BTH.cpu()

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden_STH), self.batch_windows):
            yield slice(start, min(start + self.batch_windows, len(self.hidden_STH)))


def allocate(shape: tuple[int, ...], dtype: torch.dtype, scratch: Path) -> torch.Tensor:
    """An uninitialized tensor, in a file below `scratch` when it is large."""
    count = torch.Size(shape).numel()
    if count * dtype.itemsize <= IN_MEMORY_bytes:
        return torch.empty(shape, dtype=dtype)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"hidden-{len(list(scratch.iterdir()))}.bin"
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
