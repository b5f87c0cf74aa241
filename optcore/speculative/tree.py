"""Drafted tokens as a tree: each one's parent among them by number, -1 for what the tree stands on.

A parent comes before its children, so a path from the root down is ascending numbers. Shapes: K tokens.
"""

from collections.abc import Sequence

import torch


def chain(count: int) -> tuple[int, ...]:
    """The tree without branches."""
    return tuple(range(-1, count - 1))


def rooted(parents: Sequence[int]) -> tuple[int, ...]:
    """The tree with a root of its own before it: number 0, under which all that stood on -1 stand now."""
    return (-1, *(parent + 1 for parent in parents))


def depths(parents: Sequence[int]) -> list[int]:
    """How many tokens lie above each one."""
    found: list[int] = []
    for token, parent in enumerate(parents):
        assert -1 <= parent < token, "a parent comes before its children"
        found.append(found[parent] + 1 if parent >= 0 else 0)
    return found


def ancestors(parents: Sequence[int]) -> torch.Tensor:
    """Which tokens (columns) are on the path to each one (rows), itself included: bool [K, K]."""
    above_KK = torch.eye(len(parents), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            above_KK[token] |= above_KK[parent]
    return above_KK
