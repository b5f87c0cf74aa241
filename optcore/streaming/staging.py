"""Batches of a large tensor on the CPU, to the GPU and back while it computes with others.

Each direction has a stream of its own and copies from or into pinned memory: the tensor's own, or, of one that lies in
a file, a batch's worth beside it. No more than two batches a direction are on their way. On the CPU nothing is copied
that need not be.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

_ON_THEIR_WAY = 2


class _Leaving(NamedTuple):
    """A copy on its way to the CPU."""

    done: torch.cuda.Event
    pinned: torch.Tensor
    into: torch.Tensor


class Staging:
    """Between the CPU and one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._leaving: deque[_Leaving] = deque()
        if self._is_gpu:
            self._inwards, self._outwards = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def arriving(self, source: torch.Tensor, batches: Iterable[slice]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Batches of a tensor on the device, each one copied while the caller is busy with the one before.

        On the CPU they are views of it.
        """
        if not self._is_gpu:
            yield from ((rows, source[rows]) for rows in batches)
            return
        coming: deque[tuple[slice, torch.Tensor, torch.cuda.Event]] = deque()
        for rows in batches:
            coming.append((rows, *self._sent(source[rows])))
            if len(coming) == _ON_THEIR_WAY:
                yield self._arrived(*coming.popleft())
        while coming:
            yield self._arrived(*coming.popleft())

    def keep(self, made: torch.Tensor, into: torch.Tensor) -> None:
        """Copy what was computed to where it belongs on the CPU; it is there after `settle`, on the CPU at once."""
        if not self._is_gpu:
            into.copy_(made)
            return
        self._outwards.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outwards):
            pinned = into if into.is_pinned() else _pinned_like(into)
            pinned.copy_(made, non_blocking=True)
            made.record_stream(self._outwards)
            self._leaving.append(_Leaving(self._outwards.record_event(), pinned, into))
        while len(self._leaving) > _ON_THEIR_WAY:
            self._let_out()

    def settle(self) -> None:
        """Wait until all that was kept is where it belongs."""
        while self._leaving:
            self._let_out()

    def _sent(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = (
            batch if batch.is_pinned() else torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True).copy_(batch)
        )
        room = torch.empty(batch.shape, dtype=batch.dtype, device=self._device)
        # Kernels that are queued may still read what this memory held before.
        self._inwards.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._inwards):
            room.copy_(pinned, non_blocking=True).record_stream(self._inwards)
            return room, self._inwards.record_event()

    def _arrived(self, rows: slice, batch: torch.Tensor, done: torch.cuda.Event) -> tuple[slice, torch.Tensor]:
        """The host waits for the copy, which is long done where the GPU keeps up: it would run ever further ahead of
        it otherwise, with ever more pinned memory on its way."""
        done.synchronize()
        return rows, batch

    def _let_out(self) -> None:
        leaving = self._leaving.popleft()
        leaving.done.synchronize()
        if leaving.pinned is not leaving.into:
            leaving.into.copy_(leaving.pinned)


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of them on the CPU, contiguous; a GPU is waited for once, for all of them."""
    found = {
        name: _pinned_like(tensor).copy_(tensor, non_blocking=True) if tensor.is_cuda else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Torch gives pinned memory out again only when the copies that use it are done."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
