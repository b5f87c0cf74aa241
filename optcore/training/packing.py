"""Documents put into windows of one length, several in one where they are short, none attending to another.

A document that does not fit goes on in the next window as a block of its own. Every block begins with what the
tokenizer puts before a text (BOS): attention sinks depend on it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from optcore.training.windows import BEGINS, LEARNED, PADDING, Batch

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
        yield _batch(batch)


def packed_whole(documents: Iterable[Document], before: tuple[int, ...], length: int, filler: int) -> Iterator[Batch]:
    """The same of documents that all fit into a window, none of them cut in two, one window at a time.

    What does not fit into the rest of a window begins the next one; the last window is filled too.
    """
    window = _Window()
    for document in documents:
        if window.tokens and len(window.tokens) + len(before) + len(document.ids) > length:
            yield _filled(window, length, filler)
            window = _Window()
        window.begin(before)
        window.add(document.ids, document.flags, begins=not before)
    if window.tokens:
        yield _filled(window, length, filler)


def alone(documents: Iterable[Document], before: tuple[int, ...], length: int, filler: int) -> Iterator[Batch]:
    """A window for each document, all of which fit into one.

    What fills it goes on with the document, for models that cannot keep two apart: nothing that is learned sees it.
    """
    for document in documents:
        missing = length - len(before) - len(document.ids)
        padded = Document(document.ids + [filler] * missing, [*map(bool, document.flags)] + [False] * missing)
        for batch in packed_whole((padded,), before, length, filler):
            batch.flags_BT[:, length - missing :] = PADDING
            yield batch


def _batch(windows: list[_Window]) -> Batch:
    tokens = torch.tensor([window.tokens for window in windows])
    return Batch(tokens, torch.tensor([window.flags for window in windows], dtype=torch.uint8))


def _filled(window: _Window, length: int, filler: int) -> Batch:
    _fill(window, length, filler)
    return _batch([window])


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
