"""A draft that is a language model of its own: the target with fewer layers, or a model that is small already.

Either is taught what the target says.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from optcore.links import link_checkpoint
from optcore.restructure.depth import prune_depth
from optcore.streaming.decoder import Decoder
from optcore.techniques.distill import Distill
from optcore.techniques.prune import Prune
from optcore.techniques.training import Training
from optcore.training.dense_stage import train_dense

if TYPE_CHECKING:
    from pathlib import Path

    from optcore.run import Run
    from optcore.techniques.draft import Draft


def make_small_model(run: "Run", technique: "Draft") -> None:
    """Write a plain checkpoint to `run.out` that drafts for the model of `run.checkpoint`.

    It begins with the target's weights in high precision, and learns from the target as it ships.
    """
    begun = run.out if not technique.steps else run.scratch / "begun"
    begun.mkdir(parents=True, exist_ok=True)
    _begin(run, technique, begun)
    if technique.steps:
        train_dense(replace(run, checkpoint=begun, teacher=run.checkpoint), _distill(technique))


def kept_layers(technique: "Draft", depth: int) -> int:
    """How many of a target's layers stay."""
    return technique.layers or max(1, depth // 4)


def _begin(run: "Run", technique: "Draft", begun: "Path") -> None:
    if run.models:
        link_checkpoint(run.models[0], begun)
        return
    depth = len(Decoder(run.checkpoint))
    kept = kept_layers(technique, depth)
    # layers in a row: the ones left are those that the model itself goes through one after the other
    prune = Prune(depth=depth - kept, contiguous=True, ends=kept < 2)
    prune_depth(replace(run, out=begun), prune)


def _distill(technique: "Draft") -> Distill:
    shared = technique.model_dump(include=set(Training.model_fields))
    return Distill.model_validate({**shared, "teacher": "source"})
