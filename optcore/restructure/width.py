"""A checkpoint with narrower layers: fewer FFN channels, query heads and hidden channels.

What is written must be the old model with those parts masked, or it does not count.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from optcore.links import link_companions
from optcore.restructure.activity import Measured, measure
from optcore.restructure.choice import Kept, StoredWeights, chosen, compensated, needs_text
from optcore.restructure.masked import check_masked
from optcore.restructure.slices import Slices
from optcore.restructure.width_plan import Plan, planned
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune


def prune_width(run: "Run", technique: "Prune", known: Measured | None = None) -> None:
    """Write `run.checkpoint` to `run.out` with less along each axis of `technique.sliced`.

    `known` is what calibration text shows of these axes and more, where that was measured before.
    """
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    plan = planned(decoder, technique, run.scratch)
    weights = StoredWeights(decoder)
    measured = _measured(run, decoder, plan, technique) if known is None else known
    kept = chosen(run.seed, plan, technique, weights, measured)
    gains = _gains(plan, kept, measured) if technique.rescale else {}
    changed = {**_rescaled(weights, gains, measured), **compensated(plan, kept, technique, weights, measured)}
    left_out = write_narrower(run, decoder, plan, kept, changed)
    _tell(run, plan, kept, gains, left_out)


def write_narrower(run: "Run", decoder: Decoder, plan: Plan, kept: Kept, changed: Mapping[str, torch.Tensor]) -> int:
    """Write `run.checkpoint`, which `decoder` has open, to `run.out` with the kept parts of `plan.units` alone.

    `changed` parameters get new values first. Returns how many tensors no module takes, which are left out. Raises
    `RecipeError` where the result is not the model with all else masked.
    """
    slices = Slices(decoder, plan.units, kept, changed)
    writer = TensorWriter(run.out)
    left_out = slices.write(writer)
    writer.close()
    link_companions(run.checkpoint, run.out)
    if plan.units:
        (run.out / CONFIG).write_text(json.dumps(plan.config, indent=2) + "\n")
    check_masked(run, slices, plan)
    return left_out


def activity(run: "Run", technique: "Prune") -> Measured:
    """What calibration text shows of `run.checkpoint` along each axis of `technique.sliced`, however much is cut."""
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    return _measured(run, decoder, planned(decoder, technique, run.scratch), technique)


def _measured(run: "Run", decoder: Decoder, plan: Plan, technique: "Prune") -> Measured:
    return measure(run, decoder, plan) if needs_text(plan, technique) else Measured()


def _gains(plan: Plan, kept: Kept, measured: Measured) -> dict[str, float]:
    """What each norm's gain is multiplied by."""
    stays = [kept_P for unit, kept_P in zip(plan.units, kept, strict=True) if unit.axis == "hidden"]
    return {path: measured.energies[path].narrower(stays[0]) for path in plan.norms}


def _rescaled(weights: StoredWeights, gains: dict[str, float], measured: Measured) -> dict[str, torch.Tensor]:
    """The norms' weights with those gains, as they will be stored."""
    found: dict[str, torch.Tensor] = {}
    for path, gain in gains.items():
        weight, offset = weights.stored(f"{path}.weight"), measured.energies[path].offset
        found[f"{path}.weight"] = ((weight.double() + offset) * gain - offset).to(weight.dtype)
    return found


def _tell(run: "Run", plan: Plan, kept: Kept, gains: dict[str, float], left_out: int) -> None:
    for key, (before, after) in plan.sizes.items():
        run.notice(f"{key}: {before} -> {after}, {1 - after / before:.1%} taken away")
    if left_out:
        run.notice(f"{left_out} tensors that no module takes were left out: they may belong to what was cut")
    names = [unit.reader or "hidden" for unit in plan.units]
    run.results["width"] = {
        "sizes": {key: list(sizes) for key, sizes in plan.sizes.items()},
        "kept": {name: kept_P.tolist() for name, kept_P in zip(names, kept, strict=True)},
        "gains": gains,
    }
