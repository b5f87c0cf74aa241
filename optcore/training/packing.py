"""Documents put into windows of one length, several in one where they are short, none attending to another.

A document that does not fit goes on in the next window as a block of its own. Every block begins with what the
tokenizer puts before a text (BOS): attention sinks depend on it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from optcore.training.windows import BEGINS, LEARNED, Batch

_BATCH_windows = 64
_LEAST_tokens = 2  # of a document in a block: one to see, one to predict


class Document(NamedTuple):
    """Token ids, and which of them are learned."""

    ids: list[int]
    learned: list[bool] | None = None
    """None: all of them."""

    @property
    def flags(self) -> list[int]:
        """`LEARNED` for what is learned, 0 for what is not."""
        return [LEARNED] * len(self.ids) if self.learned is None else [LEARNED * one for one in self.learned]


class _Window:
    """One that is being filled."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.flags: list[int] = []

    def begin(self, before: tuple[int, ...]) -> None:
        """Start a block with the tokens that no text is without."""
        for place, token in enumerate(before):
            self.tokens.append(token)
            self.flags.append(0 if place else BEGINS)

    def add(self, ids: list[int], flags: list[int], *, begins: bool) -> None:
        """Text of a block."""
        first = len(self.flags)
        self.tokens += ids
        self.flags += flags
        if begins:
            self.flags[first] |= BEGINS


def packed(documents: Iterable[Document], before: tuple[int, ...], length: int, filler: int) -> Iterator[Batch]:
    """Batches of windows [B, length]; the last, incomplete window is left out.

    Too little room for a block at a window's end is filled with `filler`, which nobody learns and nobody attends to.
    """
    windows = _windows(documents, before, length, filler)
    while batch := list(islice(windows, _BATCH_windows)):
        tokens = torch.tensor([window.tokens for window in batch])
        yield Batch(tokens, torch.tensor([window.flags for window in batch], dtype=torch.uint8))


def _windows(documents: Iterable[Document], before: tuple[int, ...], length: int, filler: int) -> Iterator[_Window]:
    window = _Window()
    for document in documents:
        start, flags = 0, document.flags
        while start < len(document.ids):
            room = length - len(window.tokens) - len(before)
            if room < _LEAST_tokens:
                _fill(window, length, filler)
                yield window
                window = _Window()
                continue
            part = slice(start, start + room)
            window.begin(before)
            window.add(document.ids[part], flags[part], begins=not before)
            start += room
    if len(window.tokens) == length:
        yield window


def _fill(window: _Window, length: int, filler: int) -> None:
    missing = length - len(window.tokens)
    window.tokens += [filler] * missing
    window.flags += [BEGINS] * missing
