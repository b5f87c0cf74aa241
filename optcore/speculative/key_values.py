"""A KV cache in which slot n of each row holds the row's token n, and what lies behind a row's end is nothing.

New tokens are appended behind the longest row, where trees and rejected tokens may lie too; what stays of them is moved
to its slots, and the rest is cut off. Shapes: B rows, T new tokens, S slots.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from optcore.speculative.target import Target


def empty_cache(target: Target) -> Cache:
    """Layers that keep all that they are given: windows are in the masks, and what slid out may have to come back."""
    return Cache(layers=[DynamicLayer() for _ in range(len(target.decoder))])


def settle(cache: Cache, lengths_B: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
    """Move what is kept of the last T tokens behind each row's end; the new lengths."""
    rows, columns = kept_BT.nonzero(as_tuple=True)
    places = lengths_B[rows] + kept_BT.cumsum(1)[rows, columns] - 1
    begun = int(lengths_B.max())
    moves = places != begun + columns
    rows, columns, places = rows[moves], columns[moves], places[moves]
    if len(rows):
        for layer in _filled(cache):
            for states in (layer.keys, layer.values):
                states[rows, :, places] = states[rows, :, begun + columns]  # read as a whole before any is written
    lengths_B = lengths_B + kept_BT.sum(1)
    cut(cache, int(lengths_B.max()))
    return lengths_B


def cut(cache: Cache, slots: int) -> None:
    """Forget what lies behind so many slots."""
    for layer in _filled(cache):
        layer.keys, layer.values = layer.keys[:, :, :slots], layer.values[:, :, :slots]


def _filled(cache: Cache) -> list[Any]:
    """Layers that keep keys and values: some models share one layer's among several."""
    return [layer for layer in cache.layers if layer.is_initialized]
