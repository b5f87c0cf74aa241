"""How large the features are that a draft fuses, seen before it trains.

Shapes: B windows of T tokens, F features of all tapped layers together.
"""

import torch

from optcore.drafts.draft import Draft
from optcore.drafts.fusion import Fusion
from optcore.training.batches import micro_batches
from optcore.training.draft_features import FeatureSource
from optcore.training.windows import BEGINS, LEARNED, Windows

_ENOUGH_tokens = 1024


def settle_fusions(
    draft: Draft, source: FeatureSource, windows: Windows, device: torch.device, micro: int, *, keeps: bool
) -> None:
    """Let a draft that fuses features know how large they are where it learns: in the first windows, `micro` at a time,
    that have enough learned tokens. A draft that has learned `keeps` what it does."""
    fusions = [module for module in draft.modules() if isinstance(module, Fusion)]
    if not fusions:
        return
    rms_F = _root_mean_squares(source, windows, device, micro)
    for fusion in fusions:
        fusion.settle(rms_F, keeps=keeps)


def _root_mean_squares(source: FeatureSource, windows: Windows, device: torch.device, micro: int) -> torch.Tensor:
    """Of each feature, float64 [F]; a document's first token, on which attention rests, is many times larger than the
    others and not learned behind."""
    squares_F, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    for part in micro_batches(list(range(windows.facts.training)), micro):
        batch = windows.read(part).to(device)
        counted_BT = (batch.flags_BT & (LEARNED | BEGINS)) == LEARNED
        if not counted_BT.any():
            continue
        tapped = source.features(batch, part).tapped
        squares_F = squares_F + torch.cat([one[counted_BT].double().square().sum(0) for one in tapped])
        tokens += int(counted_BT.sum())
        if tokens >= _ENOUGH_tokens:
            break
    return (squares_F / tokens).sqrt()
