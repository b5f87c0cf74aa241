"""Where a draft is asked in training whose every answer is a sequence of its own.

Shapes: B windows of T tokens, A places of each.
"""

import torch


def drawn_anchors(may_BT: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Of each window `count` places, or all it has, drawn among those that may answer, int64 [B, A], ascending.

    A window with too few gets others in addition, whose answers are not to be counted.
    """
    chances_BT = torch.rand(may_BT.shape, generator=generator).to(may_BT.device) + may_BT
    return chances_BT.topk(min(count, may_BT.shape[1]), 1).indices.sort(1).values
