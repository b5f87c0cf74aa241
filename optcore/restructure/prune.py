"""A smaller checkpoint: layers first, then the width of those that are left, then heads of which zeros are made."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from optcore.restructure.depth import prune_depth
from optcore.restructure.experts import prune_experts
from optcore.restructure.heads import heads_plan, mask_heads
from optcore.restructure.width import prune_width
from optcore.restructure.width_plan import planned
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune

Step = Callable[["Run", "Prune"], None]


def prune_checkpoint(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` with less of everything that `technique` cuts.

    Width is measured on the shallower model, which is what it must serve, and heads on the narrower one; whether all
    of it can be cut at all is asked before.
    """
    if technique.experts:
        prune_experts(run, technique.experts, is_random=technique.order == "random")
        return
    steps = _steps(technique)
    if len(steps) > 1:
        _check(run, technique, steps)
    for number, step in enumerate(steps[:-1], start=1):
        between = run.scratch / f"pruned-{number}"
        between.mkdir(parents=True)
        step(replace(run, out=between), technique)
        run = replace(run, checkpoint=between)
    steps[-1](run, technique)


def _steps(technique: "Prune") -> list[Step]:
    """What has to be done, one after the other; a copy where nothing is cut."""
    wanted: list[tuple[object, Step]] = [
        (technique.depth, prune_depth),
        (technique.sliced, prune_width),
        (technique.cuts.keys() - technique.sliced.keys(), mask_heads),
    ]
    return [step for is_wanted, step in wanted if is_wanted] or [prune_depth]


def _check(run: "Run", technique: "Prune", steps: list[Step]) -> None:
    """Refuse what a later step would, before the first of them writes anything."""
    decoder = Decoder(run.checkpoint)
    if prune_width in steps:
        planned(decoder, technique, run.scratch)
    if mask_heads in steps:
        heads_plan(decoder, technique)
