"""What one chain will take on a machine, stage by stage, and what stands against it there."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from optcore.estimate.constants import KINDS
from optcore.estimate.document import Estimate, Machine, ResultEstimate, StageEstimate
from optcore.estimate.facts import ModelFacts
from optcore.estimate.learning import Rates
from optcore.estimate.problems import problems_before, problems_of
from optcore.estimate.stages import Priced, Walk
from optcore.estimate.stored import result_bytes
from optcore.frozen import tag
from optcore.recipe import Recipe

_UNKNOWN = 2.0
"""How much wider ranges are for models that formulas were not made for."""


def estimate_chain(
    recipe: Recipe,
    facts: ModelFacts,
    machine: Machine,
    rates: Rates | None = None,
    others: Mapping[str, ModelFacts] | None = None,
    folder: Path | None = None,
) -> Estimate:
    """Of a recipe with a chain of its own; the arguments are those of `estimate`."""
    found = problems_before(recipe, facts, folder)
    if any(problem.fatal for problem in found):
        return Estimate(machine=machine, stages=(), results=(), problems=tuple(found))
    walk = Walk(recipe, facts, others or {}, machine.gpus)
    priced = tuple(walk.stages())
    stages = estimated(priced, machine, rates or Rates(), is_known=facts.is_known)
    results = tuple(
        ResultEstimate(
            result=made.result.name,
            format=tag(type(made.result.export)),
            weight_bytes=result_bytes(made.model, made.result.export),
        )
        for made in walk.made
    )
    found += problems_of(recipe, facts, machine, stages, {one.stage: one for one in priced}, walk.shaped)
    places = {one.stage: one.place for one in priced}
    return Estimate(machine=machine, stages=stages, results=results, problems=tuple(found), places=places)


def estimated(
    priced: Iterable[Priced], machine: Machine, rates: Rates, *, is_known: bool = True
) -> tuple[StageEstimate, ...]:
    """Stages with what was learned of their kinds and of the machine."""
    return tuple(_stage(one, machine, rates, 1.0 if is_known else _UNKNOWN) for one in priced)


def _stage(one: Priced, machine: Machine, rates: Rates, wider: float) -> StageEstimate:
    cost = one.cost
    raw = max(0.01, cost.work.seconds(machine) * KINDS.get(cost.kind, 1.0))
    host, gpu = cost.memory.on(machine)
    correction = rates.correction(machine.kind, cost.kind)
    seconds = raw * correction.seconds
    return StageEstimate(
        stage=one.stage,
        kind=cost.kind,
        seconds=seconds,
        seconds_low=seconds * correction.low / wider,
        seconds_high=seconds * correction.high * wider * (1 + cost.again),
        host_memory_bytes=round(host * correction.memory),
        gpu_memory_bytes=gpu,
        disk_bytes=round(cost.disk),
        scratch_bytes=round(cost.scratch),
        raw_seconds=raw,
        raw_memory_bytes=host,
        learned_from=correction.learned_from,
    )
