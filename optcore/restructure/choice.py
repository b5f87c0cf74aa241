"""Which parts of each unit stay, and what biases can make up for those that go.

Legend: P parts (channels or heads) of a unit, G groups of them, N outputs, K inputs.
"""

from typing import TYPE_CHECKING

import torch

from optcore.restructure.activity import Measured
from optcore.restructure.units import Unit
from optcore.restructure.width_plan import Plan
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.techniques.prune import Prune

Kept = list[torch.Tensor]
"""By unit, the parts that stay, in rising order."""


def best(scores_P: torch.Tensor, keeps: int, groups: int) -> torch.Tensor:
    """The parts of the highest scores, equally many of each group, in rising order; of equals, the earlier ones."""
    order_GP = scores_P.reshape(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : keeps // groups]
    starts_G1 = torch.arange(groups)[:, None] * (len(scores_P) // groups)
    return (order_GP + starts_G1).flatten().sort().values


class StoredWeights:
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


def needs_text(plan: Plan, technique: "Prune") -> bool:
    """Whether anything depends on calibration text."""
    chooses = [unit.axis != "ffn" or technique.importance != "magnitude" for unit in plan.units]
    ranks = technique.order != "random" and any(chooses)
    return bool(plan.units) and (ranks or technique.compensate or (technique.rescale and bool(plan.norms)))


def chosen(seed: int, plan: Plan, technique: "Prune", weights: StoredWeights, measured: Measured) -> Kept:
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


def _scores(unit: Unit, importance: str, weights: StoredWeights, measured: Measured) -> torch.Tensor:
    """Of the channels or heads that a linear reads, [P]."""
    if unit.axis == "heads":
        return measured.inputs[unit.reader].score_P(unit.parts)
    norm_P = torch.ones(unit.parts, dtype=torch.float64)
    if importance != "activation":
        norm_P = weights.stored(f"{unit.reader}.weight").double().norm(dim=0)
    return norm_P if importance == "magnitude" else norm_P * measured.inputs[unit.reader].score_P(unit.parts)


def compensated(
    plan: Plan, kept: Kept, technique: "Prune", weights: StoredWeights, measured: Measured
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
