"""Arrays in plain files, read and written at a place: touched pages of a mapping would count as our memory."""

import os

import torch


def write_at(file: int, start: int, values: torch.Tensor) -> None:
    """A tensor's bytes, wherever it is."""
    left = bytes_of(values.cpu().contiguous())
    while left:
        count = os.pwrite(file, left, start)
        start, left = start + count, left[count:]


def read_at(file: int, start: int, into: memoryview) -> None:
    """The system may give less than asked for at a time. Raises `OSError` where the file ends too early."""
    while into:
        count = os.preadv(file, [into], start)
        if not count:
            raise OSError("it ends too early")
        start, into = start + count, into[count:]


def bytes_of(values: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(values.view(-1).view(torch.uint8).numpy())
