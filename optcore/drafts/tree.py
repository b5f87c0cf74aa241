"""Trees of candidates for heads that do not know each other's tokens.

They are those of Medusa (arXiv:2401.10774), which chooses them by measured accuracies. A node is a path: of each head
on the way to it, the rank of its token among that head's likeliest. (0, 2) is the third choice of the second head
behind the first choice of the first. A tree is its nodes, each behind its parent and its better siblings.

Shapes: N rows, D tokens of the draft vocabulary.
"""

import heapq
from collections.abc import Sequence

import torch

Path = tuple[int, ...]


def likeliest_tree(accuracies: Sequence[Sequence[float]], nodes: int) -> tuple[Path, ...]:
    """The tree of so many nodes whose expected number of accepted tokens is largest.

    `accuracies[k][i]` is how often the token of rank i of head k is right, and they are taken to be right independently
    of each other: a node counts for the product along its path. Of all trees the best is that of the largest products,
    since a node is never worth more than its parent. Any first part of it is the best tree of that many nodes.
    Raises ValueError where there are not so many nodes, or a rank is more often right than a better one.
    """
    if any(list(ranks) != sorted(ranks, reverse=True) for ranks in accuracies):
        raise ValueError("a worse rank is more often right than a better one: measure on more tokens")
    found: list[Path] = []
    waiting: list[tuple[float, Path]] = [(-accuracies[0][0], (0,))]
    while waiting and len(found) < nodes:
        value, path = heapq.heappop(waiting)
        found.append(path)
        head, rank = len(path) - 1, path[-1]
        if rank + 1 < len(accuracies[head]) and accuracies[head][rank] > 0:
            worse = value / accuracies[head][rank] * accuracies[head][rank + 1]
            heapq.heappush(waiting, (worse, (*path[:-1], rank + 1)))
        if head + 1 < len(accuracies):
            heapq.heappush(waiting, (value * accuracies[head + 1][0], (*path, 0)))
    if len(found) < nodes:
        raise ValueError(f"{len(found)} nodes are all there are, not {nodes}")
    return tuple(found)


def product_tree(ranks: Sequence[int]) -> tuple[Path, ...]:
    """Every combination of the first `ranks[k]` choices of each head k (the Cartesian product)."""
    found: list[Path] = []
    level: list[Path] = [()]
    for width in ranks:
        level = [(*path, rank) for path in level for rank in range(width)]
        found += level
    return tuple(found)


def rank_accuracies(logits_ND: torch.Tensor, right_N: torch.Tensor, ranks: int) -> list[float]:
    """How often the token that is right, as a draft's id or -1 for one it does not know, has each of the best ranks."""
    order_NR = logits_ND.topk(ranks, -1).indices
    return [float(share) for share in (order_NR == right_N[:, None]).double().mean(0)]


def parents_of(tree: Sequence[Path]) -> tuple[int, ...]:
    """Each node's parent among them, -1 for those that follow the chosen token.

    Raises ValueError for what is no tree in this order.
    """
    places: dict[Path, int] = {(): -1}
    for place, path in enumerate(tree):
        if path[:-1] not in places or (path[-1] > 0 and (*path[:-1], path[-1] - 1) not in places) or path in places:
            raise ValueError(f"{path} does not stand once, behind its parent and its better siblings")
        places[path] = place
    return tuple(places[path[:-1]] for path in tree)


def nodes_of(tree: Sequence[Path]) -> list[tuple[int, int]]:
    """Each node's head and rank."""
    return [(len(path) - 1, path[-1]) for path in tree]
