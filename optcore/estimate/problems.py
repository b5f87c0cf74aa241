"""Why a recipe cannot be run, or not on a machine: what the engine would refuse later, and what does not fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from optcore.calibration.assignment import unfit_group
from optcore.errors import OptError
from optcore.estimate.document import Machine, Problem, StageEstimate, peak_disk
from optcore.estimate.facts import ModelFacts
from optcore.estimate.stages import Priced
from optcore.estimate.stored import Model
from optcore.fetching import learns_labels
from optcore.measures import check_lengths, check_measures
from optcore.plan import check
from optcore.recipe import Recipe
from optcore.report import Task
from optcore.schemes import PRESETS
from optcore.targets import check_exports, check_target, family_of

MARGIN_new, MARGIN_learned, MARGIN_gpu = 1.5, 1.25, 2.0
"""How far a stage's memory may be below what is reckoned, before and after stages of its kind were seen: only what does
not fit even then is refused, and what stages of other projects taught refuses nothing that fits by the formula. The
memory of a GPU is a formula's alone, and was compared with none. What the engine itself asks for before it trains is
refused without a margin."""
_GIB = 2**30
_LESS = 0.95
"""What a remedy leaves at most of what lacks, to be worth a word."""
_MOST_remedies = 4


def problems_before(recipe: Recipe, facts: ModelFacts, folder: Path | None) -> list[Problem]:
    """What the engine refuses before any work, on whatever machine."""
    family = family_of(facts.config, (one.shape for one in facts.tensors))
    task = _task(recipe, facts)
    checks: list[Callable[[], None]] = [
        lambda: check(recipe),
        lambda: check_measures(recipe, task),
        lambda: check_target(recipe, family),
    ]
    if task == "text-generation":
        checks.append(lambda: check_lengths(recipe, facts.positions))
    if folder is not None:
        checks.append(lambda: check_exports(recipe, folder, task))
    return list(_refused(checks))


def problems_of(
    recipe: Recipe,
    facts: ModelFacts,
    machine: Machine,
    stages: Sequence[StageEstimate],
    priced: Mapping[str, Priced],
    shaped: Sequence[tuple[str, Model]],
) -> list[Problem]:
    """What does not fit the machine, or a number format the sizes that it meets.

    `priced` are the stages by name, `shaped` says which quantized model each entry leaves.
    """
    found = [*_groups(shaped), *_lengths(recipe, facts), *_wishes(recipe, machine)]
    found += short_of_memory(machine, stages, priced)
    found += short_of_disk(machine, stages, {name: one.place for name, one in priced.items()})
    found += _unmeasured(machine, priced)
    found += short_of_time(recipe, stages, sum(stage.seconds_low for stage in stages))
    return found


def _task(recipe: Recipe, facts: ModelFacts) -> Task:
    if not facts.is_encoder:
        return "text-generation"
    named = facts.config.get("architectures") or ()
    is_classifier = learns_labels(recipe) or any(str(name).endswith("ForSequenceClassification") for name in named)
    return "text-classification" if is_classifier else "fill-mask"


def _refused(checks: Sequence[Callable[[], None]]) -> Iterator[Problem]:
    """What the first check that refuses says; later ones may take it for granted."""
    for each in checks:
        try:
            each()
        except OptError as error:
            yield Problem(field=error.field, message=str(error), remedy=error.remedy)
            return


def _groups(shaped: Sequence[tuple[str, Model]]) -> Iterator[Problem]:
    for place, model in shaped:
        tensors = {one.name: one for one in model.facts.tensors}
        for name, format_ in model.formats.items():
            if not isinstance(format_, str):
                continue
            inputs = tensors[name].matrix[1]
            if size := unfit_group(inputs, PRESETS[format_]):
                yield Problem(
                    field=f"{place}/scheme",
                    message=f"{tensors[name].module} has {inputs} inputs, which groups of {size} do not divide",
                    remedy=f"add it to `ignore`, or choose another scheme than {format_}",
                )
                break


def _lengths(recipe: Recipe, facts: ModelFacts) -> Iterator[Problem]:
    if (asked := recipe.calibration.sequence_length) > facts.positions:
        yield Problem(
            field="/calibration/sequence_length",
            message=f"the model holds {facts.positions} tokens, and windows of {asked} are cut to that",
            remedy=f"ask for at most {facts.positions}",
            fatal=False,
        )


def _wishes(recipe: Recipe, machine: Machine) -> Iterator[Problem]:
    wished = recipe.hardware
    if wished.device != "any" and wished.device != machine.device:
        yield _wish("device", f"the job asks for {wished.device}, and this worker computes on {machine.device}")
    if wished.gpu_kind and wished.gpu_kind.lower() not in machine.gpu_kind.lower():
        yield _wish("gpu_kind", f"the job asks for a GPU like {wished.gpu_kind}, this is {machine.gpu_kind or 'none'}")
    if wished.gpu_memory_gib and (machine.gpu_memory_bytes or 0) < wished.gpu_memory_gib * _GIB:
        has = (machine.gpu_memory_bytes or 0) / _GIB
        yield _wish(
            "gpu_memory_gib", f"the job asks for {wished.gpu_memory_gib:g} GiB on each GPU, there are {has:.1f}"
        )


def _wish(name: str, message: str) -> Problem:
    return Problem(
        field=f"/hardware/{name}", message=message, remedy="choose another worker, or leave this out", of_machine=True
    )


def short_of_memory(
    machine: Machine, stages: Sequence[StageEstimate], priced: Mapping[str, Priced]
) -> Iterator[Problem]:
    """Of the GPU's memory and of the host's, the stage that stands against it most; `priced` by the stage's name."""
    for what, has in (("GPU memory", machine.gpu_memory_bytes), ("memory", machine.host_memory_bytes)):
        if has is None:
            continue
        found = [_shortage(stage, priced.get(stage.stage), machine, is_gpu=what != "memory") for stage in stages]
        short = [one for one in found if one.needed > has]
        if short:
            worst = max(short, key=lambda one: (one.least > has, one.needed))
            said = f"{worst.needed / _GIB:.1f} GiB of {what}, and {has / _GIB:.1f} are there"
            yield Problem(
                field=worst.priced.place if worst.priced else "",
                message=f"stage {worst.stage} needs about {said}",
                remedy=_remedy(worst.priced, machine, 1 if what != "memory" else 0),
                fatal=worst.least > has,
                of_machine=True,
                lacks="memory",
            )


class _Shortage(NamedTuple):
    """What one stage takes of one memory."""

    stage: str
    priced: Priced | None
    needed: float
    least: float
    """Bytes without which it surely fails."""


def _shortage(stage: StageEstimate, priced: Priced | None, machine: Machine, *, is_gpu: bool) -> _Shortage:
    """Of a GPU nothing was learned, and a host's memory is refused by what the formula says at most."""
    asked = priced.cost.memory.asked(machine)[is_gpu] if priced else 0.0
    needed = stage.gpu_memory_bytes if is_gpu else stage.host_memory_bytes
    is_learned = stage.host_memory_bytes != stage.raw_memory_bytes  # of some kinds the machine's speed alone is known
    margin = MARGIN_gpu if is_gpu else MARGIN_learned if is_learned else MARGIN_new
    least = needed / margin if is_gpu else min(needed / margin, stage.raw_memory_bytes)
    return _Shortage(stage.stage, priced, max(needed, asked), max(least, asked))


def _remedy(priced: Priced | None, machine: Machine, number: int) -> str:
    """What makes least of a stage first."""
    if priced is None:
        return "use a larger worker"
    now = priced.cost.memory.on(machine)[number]
    then = sorted((one.memory.on(machine)[number], one.said) for one in priced.remedies())
    said = [text for left, text in then if left < _LESS * now][:_MOST_remedies]
    return f"{', '.join(said)}, or use a larger worker" if said else "use a larger worker"


def short_of_disk(machine: Machine, stages: Sequence[StageEstimate], places: Mapping[str, str]) -> Iterator[Problem]:
    has, needs = machine.disk_free_bytes, peak_disk(stages)
    if has is None or needs <= has:
        return
    largest = max(stages, key=lambda stage: stage.disk_bytes)
    yield Problem(
        field=places.get(largest.stage, ""),
        message=f"all stages need about {needs / _GIB:.1f} GiB in the work folder, most of it stage {largest.stage}, "
        f"and {has / _GIB:.1f} are free",
        remedy="free space, or use a worker with a larger disk",
        fatal=needs / MARGIN_new > has,
        of_machine=True,
        lacks="disk",
    )


def _unmeasured(machine: Machine, priced: Mapping[str, Priced]) -> Iterator[Problem]:
    """What is left out where the model has no room as a whole; once, of however many stages."""
    lacking = [one.cost.memory for one in priced.values() if not one.cost.memory.loads(machine)]
    if lacking:
        size = max(memory.loaded for memory in lacking) / _GIB
        yield Problem(
            field="/evaluate",
            message=f"throughput will not be measured here: the model as a whole, {size:.1f} GiB, has no room to load",
            remedy="use a larger worker, or leave the evaluator out",
            fatal=False,
            of_machine=True,
        )


def short_of_time(recipe: Recipe, stages: Sequence[StageEstimate], least: float) -> Iterator[Problem]:
    """`least` are the seconds that are taken in any case."""
    limit, seconds = recipe.limits.max_run_seconds, sum(stage.seconds for stage in stages)
    if limit is None or seconds <= limit:
        return
    yield Problem(
        field="/limits/max_run_seconds",
        message=f"the job takes about {seconds:.0f} seconds here, and may take {limit}",
        remedy="raise the limit, use a faster worker, or do less",
        fatal=least > limit,
        of_machine=True,
    )
