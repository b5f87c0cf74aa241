"""A checkpoint with fewer decoder layers: which ones go."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from optcore.errors import RecipeError
from optcore.restructure.influence import influences
from optcore.restructure.left_out import costs
from optcore.restructure.stack import Taken, is_stack, write_stack
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune


def prune_depth(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` without the layers that `technique` chooses."""
    decoder = Decoder(run.checkpoint)
    dropped, scores = _dropped(run, decoder, technique)
    kept = [Taken(decoder, index) for index in range(len(decoder)) if index not in dropped]
    write_stack(decoder, kept, run.out)
    if not is_stack(decoder, kept, run.out):
        raise RecipeError(
            f"a {type(decoder.model).__name__} without those layers is another model: what its layers do depends on "
            "their numbers",
            remedy="prune this model by another method",
            field="/chain",
        )
    run.results["depth"] = {"dropped": dropped, "scores": scores}
    if dropped:
        run.notice(f"layers left out: {', '.join(map(str, dropped))} of {len(decoder)}, counted from 0")


def may_go(depth: int, technique: "Prune") -> range:
    """Of `depth` layers, those that the technique may leave out."""
    return range(depth) if technique.ends else range(1, depth - 1)


def least(scores: Sequence[float], count: int, allowed: range) -> list[int]:
    """The `count` allowed layers of lowest score, in their order; of equals, the later ones."""
    return sorted(sorted(allowed, key=lambda index: (scores[index], -index))[:count])


def least_run(scores: Sequence[float], count: int, allowed: range) -> list[int]:
    """The `count` consecutive allowed layers of lowest score; scores[i] is of those from i on."""
    starts = range(allowed.start, allowed.stop - count + 1)
    start = min(starts, key=lambda index: (scores[index], -index))
    return list(range(start, start + count))


def _dropped(run: "Run", decoder: Decoder, technique: "Prune") -> tuple[list[int], list[float]]:
    """Layers to leave out, and the scores they were chosen by."""
    depth, count = len(decoder), technique.depth
    allowed = may_go(depth, technique)
    if count > len(allowed) or count == depth:
        ends = "" if technique.ends else " (the first and the last stay unless `ends` is true)"
        raise RecipeError(
            f"cannot leave out {count} of {depth} layers{ends}",
            remedy=f"leave out at most {min(len(allowed), depth - 1)}",
            field="/chain",
        )
    if count == 0:
        return [], []
    if technique.order == "random":
        order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(run.seed)).tolist()
        return sorted(allowed[place] for place in order[:count]), []
    if technique.order == "divergence" and decoder.is_classifier:
        raise RecipeError(
            "`order: divergence` is of the tokens that a model predicts, and a classifier predicts none",
            remedy="use `order: influence`",
            field="/chain",
        )
    measure = costs if technique.order == "divergence" else influences
    scores = measure(run, decoder, count if technique.contiguous else 1)
    return (least_run if technique.contiguous else least)(scores, count, allowed), scores
