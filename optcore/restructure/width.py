"""A checkpoint with narrower layers: fewer FFN channels, query heads and hidden channels.

What is written must be the old model with those parts masked, or it does not count.

Legend: P parts (channels or heads) of a unit, G groups of them.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from optcore.links import link_companions
from optcore.restructure.activity import Measured, measure
from optcore.restructure.masked import check_masked
from optcore.restructure.slices import Slices
from optcore.restructure.units import Unit
from optcore.restructure.width_plan import Plan, planned
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune

Kept = list[torch.Tensor]
"""By unit, the parts that stay, in rising order."""


def prune_width(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` with less along each axis of `technique.cuts`."""
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    plan = planned(decoder, technique, run.scratch)
    weights = _Weights(decoder)
    measured = measure(run, decoder, plan) if _needs_text(plan, technique) else Measured()
    kept = _kept(run.seed, plan, technique, weights, measured)
    gains = _gains(plan, kept, measured) if technique.rescale else {}
    changed = {**_rescaled(weights, gains, measured), **_compensated(plan, kept, technique, weights, measured)}
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


def best(scores_P: torch.Tensor, keeps: int, groups: int) -> torch.Tensor:
    """The parts of the highest scores, equally many of each group, in rising order; of equals, the earlier ones."""
    order_GP = scores_P.reshape(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : keeps // groups]
    starts_G1 = torch.arange(groups)[:, None] * (len(scores_P) // groups)
    return (order_GP + starts_G1).flatten().sort().values


class _Weights:
    """Single parameters, read where they are wanted; of a tensor with all experts in it, all that are asked in turn."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._held: tuple[str, torch.Tensor] = ("", torch.empty(0))

    def stored(self, name: str) -> torch.Tensor:
        """A parameter in its stored type."""
        source = self._decoder.names.sources[name]
        if self._held[0] != source.stored:
            self._held = (source.stored, self._decoder.reader.tensor(source.stored))
        return source.of(self._held[1])


def _needs_text(plan: Plan, technique: "Prune") -> bool:
    chooses = [unit.axis != "ffn" or technique.importance != "magnitude" for unit in plan.units]
    ranks = technique.order == "influence" and any(chooses)
    return bool(plan.units) and (ranks or technique.compensate or (technique.rescale and bool(plan.norms)))


def _kept(seed: int, plan: Plan, technique: "Prune", weights: _Weights, measured: Measured) -> Kept:
    """What stays of each unit. Heads are ranked inside the group that shares a key, hidden channels over all norms."""
    generator = torch.Generator().manual_seed(seed)
    found: Kept = []
    for unit in plan.units:
        if technique.order == "random":
            scores_P = torch.rand(unit.parts, generator=generator)
        elif unit.axis == "hidden":
            scores_P = torch.stack([measured.outputs[path].score_P(unit.parts) for path in plan.norms]).sum(0)
        else:
            scores_P = _scores(unit, technique.importance, weights, measured)
        found.append(best(scores_P, unit.keeps, unit.groups))
    return found


def _scores(unit: Unit, importance: str, weights: _Weights, measured: Measured) -> torch.Tensor:
    """Of the channels or heads that a linear reads, [P]."""
    if unit.axis == "heads":
        return measured.inputs[unit.reader].score_P(unit.parts)
    norm_P = torch.ones(unit.parts, dtype=torch.float64)
    if importance != "activation":
        norm_P = weights.stored(f"{unit.reader}.weight").double().norm(dim=0)
    return norm_P if importance == "magnitude" else norm_P * measured.inputs[unit.reader].score_P(unit.parts)


def _gains(plan: Plan, kept: Kept, measured: Measured) -> dict[str, float]:
    """What each norm's gain is multiplied by."""
    stays = [kept_P for unit, kept_P in zip(plan.units, kept, strict=True) if unit.axis == "hidden"]
    return {path: measured.energies[path].narrower(stays[0]) for path in plan.norms}


def _rescaled(weights: _Weights, gains: dict[str, float], measured: Measured) -> dict[str, torch.Tensor]:
    """The norms' weights with those gains, as they will be stored."""
    found: dict[str, torch.Tensor] = {}
    for path, gain in gains.items():
        weight, offset = weights.stored(f"{path}.weight"), measured.energies[path].offset
        found[f"{path}.weight"] = ((weight.double() + offset) * gain - offset).to(weight.dtype)
    return found


def _compensated(
    plan: Plan, kept: Kept, technique: "Prune", weights: _Weights, measured: Measured
) -> dict[str, torch.Tensor]:
    """Readers' biases with what the removed inputs gave in the mean: b + W_removed mean(x_removed)."""
    found: dict[str, torch.Tensor] = {}
    for unit, kept_P in zip(plan.units, kept, strict=True):
        if technique.compensate and unit.reader:
            weight_NK = weights.stored(f"{unit.reader}.weight").double()
            channels = weight_NK.shape[1]
            mean_K = measured.inputs[unit.reader].mean_K(channels).clone()
            block = channels // unit.parts
            mean_K.view(unit.parts, block)[kept_P] = 0
            bias_N = weights.stored(f"{unit.reader}.bias")
            found[f"{unit.reader}.bias"] = (bias_N.double() + weight_NK @ mean_K).to(bias_N.dtype)
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
