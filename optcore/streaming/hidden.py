"""Hidden states of a whole calibration set between two layers, on disk when they are large."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from optcore.errors import OutOfDisk, UnknownArchitecture, folder_error
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.staging import Staging

IN_MEMORY_bytes = 2 * 2**30
BATCH_tokens = 4096


class HiddenStates:
    """The states of all windows [S, T, H], advanced layer by layer in place.

    More than `in_memory_bytes` go to a file below `scratch`. Raises `OutOfDisk` when it does not fit there, at once.
    """

    def __init__(
        self, decoder: Decoder, tokens_ST: torch.Tensor, scratch: Path, in_memory_bytes: int = IN_MEMORY_bytes
    ) -> None:
        self.decoder = decoder
        self.batch_windows = max(1, BATCH_tokens // tokens_ST.shape[1])
        self._arguments: dict[int, tuple[dict[str, Any], ...]] = {}
        self._scratch, self._in_memory_bytes = scratch, in_memory_bytes
        self._staging = Staging(decoder.device)
        self._tokens_1T = tokens_ST[:1]
        first = decoder.embed(self._tokens_1T)
        shape = (*tokens_ST.shape, first.hidden_BTH.shape[-1])
        self.hidden_STH = self._allocated(shape, decoder.dtype)
        self.frozen_ST: torch.Tensor | None = None
        """Tokens that have left, where the decoder lets any."""
        for rows in self._batches():
            state = decoder.embed(tokens_ST[rows])
            self._remember(state)
            self._staging.keep(state.hidden_BTH, self.hidden_STH[rows])
        self._staging.settle()

    def states(self) -> Iterator[tuple[slice, State]]:
        """Batches as states to call a layer with."""
        return self._states(self.hidden_STH)

    def chosen(self, windows: Sequence[int]) -> State:
        """Some windows, in the order given, as a state to call a layer with."""
        count = len(windows)
        if count not in self._arguments:  # they do not depend on the tokens
            self._arguments[count] = self.decoder.embed(self._tokens_1T.expand(count, -1)).arguments
        rows = list(windows)
        frozen = None if self.frozen_ST is None else self.frozen_ST[rows].to(self.decoder.device)
        return State(self.hidden_STH[rows].to(self.decoder.device), self._arguments[count], frozen)

    def copy(self) -> torch.Tensor:
        """All states as they are now [S, T, H], on disk when they are large."""
        return self._allocated(tuple(self.hidden_STH.shape), self.hidden_STH.dtype).copy_(self.hidden_STH)

    def advance(self, index: int, layer: torch.nn.Module, cache: object = None) -> None:
        """Replace every window's state by the layer's output."""
        for rows, state in self.states():
            after = self.decoder.forward(index, layer, state, cache)
            self._staging.keep(after.hidden_BTH, self.hidden_STH[rows])
            if after.frozen_BT is not None:
                if self.frozen_ST is None:
                    self.frozen_ST = torch.zeros(self.hidden_STH.shape[:2], dtype=torch.bool)
                self._staging.keep(after.frozen_BT, self.frozen_ST[rows])
        self._staging.settle()

    def through(self, index: int, layer: torch.nn.Module, given_STH: torch.Tensor, into_STH: torch.Tensor) -> None:
        """Other states of the same windows through a layer; `into_STH` may be `given_STH`."""
        for rows, state in self._states(given_STH):
            self._staging.keep(self.decoder.forward(index, layer, state).hidden_BTH, into_STH[rows])
        self._staging.settle()

    def _states(self, hidden_STH: torch.Tensor) -> Iterator[tuple[slice, State]]:
        for rows, hidden_BTH in self._staging.arriving(hidden_STH, self._batches()):
            frozen = None if self.frozen_ST is None else self.frozen_ST[rows].to(self.decoder.device)
            yield rows, State(hidden_BTH, self._arguments[len(hidden_BTH)], frozen)

    def _allocated(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        pinned = self.decoder.device.type == "cuda"
        return allocate(shape, dtype, self._scratch, self._in_memory_bytes, pinned=pinned)

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden_STH), self.batch_windows):
            yield slice(start, min(start + self.batch_windows, len(self.hidden_STH)))

    def _remember(self, state: State) -> None:
        """Keep what layers are called with, once for all batches of a size: it must not depend on the tokens."""
        known = self._arguments.setdefault(state.hidden_BTH.shape[0], state.arguments)
        compared: set[tuple[int, int]] = set()  # all layers are given the same few tensors
        for before, now in zip(known, state.arguments, strict=True):
            for name, value in now.items():
                pair = (id(before.get(name)), id(value))
                if pair not in compared and not _is_same(before.get(name), value):
                    raise self._depends_on_tokens(name)
                compared.add(pair)

    def _depends_on_tokens(self, name: str) -> UnknownArchitecture:
        return UnknownArchitecture(
            f"layers of {type(self.decoder.model).__name__} are given `{name}`, which depends on the tokens",
            remedy="use a model whose layers see the text through their hidden states alone",
            field="/model",
        )


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, scratch: Path, in_memory_bytes: int, *, pinned: bool = False
) -> torch.Tensor:
    """An uninitialised tensor in memory, or in a nameless file that goes when the tensor, or this process, does.

    `pinned` memory is one that a GPU can copy from by itself; a file's never is.
    """
    count = torch.Size(shape).numel()
    nbytes = count * dtype.itemsize
    if nbytes <= in_memory_bytes:
        return torch.empty(shape, dtype=dtype, pin_memory=pinned)
    scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(scratch).free
    if nbytes > free:
        raise OutOfDisk(
            f"the hidden states take {nbytes / 2**30:.1f} GiB, {free / 2**30:.1f} are free in the work folder",
            remedy="free space, name another folder with --work, or use fewer or shorter calibration samples",
        )
    return _mapped(count, nbytes, dtype, scratch).view(shape)


def _mapped(count: int, nbytes: int, dtype: torch.dtype, scratch: Path) -> torch.Tensor:
    """A file's blocks are reserved before it is mapped: writing to a mapping of a full disk would be a SIGBUS."""
    try:
        file, name = tempfile.mkstemp(prefix="hidden-", suffix=".bin", dir=scratch)
        try:
            os.posix_fallocate(file, 0, nbytes)
            return torch.from_file(name, shared=True, size=count, dtype=dtype)
        finally:
            os.close(file)
            Path(name).unlink()
    except OSError as error:
        raise folder_error(error) from error


def _is_same(before: object, now: object) -> bool:
    if isinstance(now, torch.Tensor):
        return isinstance(before, torch.Tensor) and torch.equal(before, now)
    if isinstance(now, tuple | list):
        return isinstance(before, tuple | list) and len(before) == len(now) and all(map(_is_same, before, now))
    return True
