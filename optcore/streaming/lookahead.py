"""A layer's tensors, read while the layer before it computes.

Which layer that will be is a guess (the walk goes on as it went), and no more than that: any other may be asked for, at
the price of what was read in vain. At most one layer is ahead; on a GPU it is there already, and where free memory does
not hold two it is not begun. On the CPU nothing is read ahead: that would take the cores and the memory of what
computes.
"""

from collections.abc import Iterator, Sequence
from threading import Event, Thread
from typing import NamedTuple

import torch

from optcore.errors import BadCheckpoint
from optcore.out_of_memory import is_out_of_memory
from optcore.streaming.free_memory import gpu_bytes
from optcore.streaming.reader import TensorReader


class Staged(NamedTuple):
    """A stored tensor on the CPU, and the same on the device; one tensor where that is the CPU."""

    stored: torch.Tensor
    moved: torch.Tensor


class Lookahead:
    """Gives out the tensors of layers; `layers` are their names in the checkpoint. `is_on` is for tests."""

    def __init__(
        self, reader: TensorReader, layers: Sequence[Sequence[str]], device: torch.device, *, is_on: bool | None = None
    ) -> None:
        self._reader = reader
        self._layers = layers
        self._device = device
        self._is_on = device.type == "cuda" if is_on is None else is_on
        self._last: int | None = None
        self._journey: _Journey | None = None

    def tensors(self, index: int) -> Iterator[tuple[str, Staged]]:
        """A layer's, finite ones, in the order of their names; then the next one is begun.

        Raises `BadCheckpoint` at the tensor that is damaged, whenever it was read.
        """
        journey, self._journey = self._journey, None
        if journey:
            journey.arrive(is_wanted=journey.index == index)
        arrived = journey.arrived if journey and journey.index == index else {}
        for name in self._layers[index]:
            staged = arrived.pop(name, None) or self._read(name)
            self._reader.bytes_read += staged.stored.nbytes
            yield name, staged
            del staged
        following = self._guess(index)
        self._last = index
        if following is not None and self._is_on and self._has_room(following):
            self._journey = _Journey(self._reader, following, self._layers[following], self._device)

    def _read(self, name: str) -> Staged:
        stored = finite(name, self._reader.uncounted(name))
        return Staged(stored, stored.to(self._device))

    def _guess(self, index: int) -> int | None:
        step = 1 if self._last is None else index - self._last
        following = index + step
        return following if abs(step) == 1 and 0 <= following < len(self._layers) else None

    def _has_room(self, index: int) -> bool:
        if self._device.type != "cuda":
            return True
        return gpu_bytes(self._device) >= 2 * sum(map(self._reader.nbytes, self._layers[index]))


class _Journey:
    """A layer on its way: a thread reads into pinned memory, a stream of its own copies from there.

    The tensors' room on the GPU is taken here, from the pool of the stream that computes, and goes back to it.
    """

    def __init__(self, reader: TensorReader, index: int, names: Sequence[str], device: torch.device) -> None:
        self.index = index
        self.arrived: dict[str, Staged] = {}
        """What may be used once `arrive` returned: all, or what came before a fault, which will show up again."""
        self._reader = reader
        self._stopped = Event()
        self._room: dict[str, torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._take_room(names, device)
        self._thread = Thread(target=self._travel, args=(names,), name=f"layer {index} ahead")
        self._thread.start()

    def arrive(self, *, is_wanted: bool) -> None:
        """Wait for the thread, and let what computes next wait for the copies; one that nobody wants is cut short."""
        if not is_wanted:
            self._stopped.set()
        self._thread.join()
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        if not is_wanted:
            self.arrived.clear()
        self._room.clear()

    def _take_room(self, names: Sequence[str], device: torch.device) -> None:
        try:
            for name in names:
                shape, dtype = self._reader.shape(name), self._reader.dtype(name)
                self._room[name] = torch.empty(shape, dtype=dtype, device=device)
        except torch.OutOfMemoryError:  # in pieces that are too small
            self._room.clear()
            self._stopped.set()
        self._stream = torch.cuda.Stream(device)
        # Kernels that are queued may still read what this memory held before.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def _travel(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                if self._stopped.is_set():
                    return
                self.arrived[name] = self._moved(name, self._room.get(name))
        except BadCheckpoint:  # it is read again, and said, when the layer is asked for
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    def _moved(self, name: str, room: torch.Tensor | None) -> Staged:
        stored = finite(name, self._reader.uncounted(name, pinned=room is not None))
        if room is None:
            return Staged(stored, stored)
        with torch.cuda.stream(self._stream):
            room.copy_(stored, non_blocking=True)
        room.record_stream(self._stream)  # whoever drops it early does not wait for the copy
        return Staged(stored, room)


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, on the CPU, where looking at it makes nobody wait. Raises `BadCheckpoint` where it is not finite."""
    if tensor.is_floating_point() and tensor.numel() and tensor.dtype.itemsize > 1:
        low, high = tensor.aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise BadCheckpoint(
                f"{name} holds values that are not finite",
                remedy="use an earlier checkpoint of the model; this one is damaged, or its training diverged",
                field="/model",
            )
    return tensor
