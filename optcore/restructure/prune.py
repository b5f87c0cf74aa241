"""A smaller checkpoint: layers first, then the width of those that are left."""

from dataclasses import replace
from typing import TYPE_CHECKING

from optcore.restructure.depth import prune_depth
from optcore.restructure.experts import prune_experts
from optcore.restructure.width import prune_width
from optcore.restructure.width_plan import planned
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune


def prune_checkpoint(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` with less of everything that `technique` cuts.

    Width is measured on the shallower model, which is what it must serve; whether this model's width can be cut at
    all is asked before.
    """
    if technique.experts:
        prune_experts(run, technique.experts, is_random=technique.order == "random")
        return
    if not technique.cuts:
        prune_depth(run, technique)
        return
    if technique.depth:
        planned(Decoder(run.checkpoint), technique, run.scratch)
        shallower = run.scratch / "shallower"
        shallower.mkdir(parents=True)
        prune_depth(replace(run, out=shallower), technique)
        run = replace(run, checkpoint=shallower)
    prune_width(run, technique)
