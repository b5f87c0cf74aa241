"""Why a recipe cannot be run, or not on a machine: what the engine would refuse later, and what does not fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from optcore.calibration.assignment import unfit_group
from optcore.errors import OptError
from optcore.estimate.document import Machine, Problem, StageEstimate, peak_disk
from optcore.estimate.facts import ModelFacts
from optcore.estimate.stored import Model
from optcore.fetching import learns_labels
from optcore.measures import check_lengths, check_measures
from optcore.plan import check
from optcore.recipe import Recipe
from optcore.report import Task
from optcore.schemes import PRESETS
from optcore.targets import check_exports, check_target, family_of

MARGIN_new, MARGIN_learned = 1.5, 1.25
"""How far a stage's memory may be below what is reckoned, before and after stages of its kind were seen: only what does
not fit even then is refused, and what stages of other projects taught refuses nothing that fits by the formula."""
_GIB = 2**30
_REMEDIES = {
    "ptq": "use fewer or shorter calibration samples, `rounding: nearest` with `smoothing: none`, or a larger worker",
    "auto_quantize": "use fewer or shorter calibration samples, or a larger worker",
    "qad": "use `scope: block`, `lora` or `scales`, keep the answers with `teacher_top_k`, or use a larger worker",
    "qat": "use `scope: block`, `lora` or `scales`, or a larger worker",
    "draft": "keep what the target computes with `features: kept`, name a smaller `vocabulary`, or use a larger worker",
    "evaluate": "measure fewer or shorter samples, or use a larger worker",
}
_TRAINING = "use `scope: lora`, keep the answers with `teacher_top_k`, lower `micro_batch`, or use a larger worker"


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
    places: Mapping[str, str],
    shaped: Sequence[tuple[str, Model]],
) -> list[Problem]:
    """What does not fit the machine, or a number format the sizes that it meets.

    `places` says where in the recipe each stage's cause stands, `shaped` which quantized model each entry leaves.
    """
    found = [*_groups(shaped), *_lengths(recipe, facts), *_wishes(recipe, machine)]
    found += short_of_memory(machine, stages, places)
    found += short_of_disk(machine, stages, places)
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


def short_of_memory(machine: Machine, stages: Sequence[StageEstimate], places: Mapping[str, str]) -> Iterator[Problem]:
    """The stage that lacks most, of the host's memory and of the GPU's."""
    host = [(stage.host_memory_bytes, stage.raw_memory_bytes) for stage in stages]
    gpu = [(stage.gpu_memory_bytes, stage.gpu_memory_bytes) for stage in stages]  # of which nothing is learned
    for what, has, needs in (
        ("GPU memory", machine.gpu_memory_bytes, gpu),
        ("memory", machine.host_memory_bytes, host),
    ):
        needed, by_formula = max(needs, default=(0, 0))
        if has is None or needed <= has:
            continue
        largest = stages[needs.index((needed, by_formula))]
        margin = MARGIN_learned if largest.learned_from else MARGIN_new
        said = f"{needed / _GIB:.1f} GiB of {what}, and {has / _GIB:.1f} are there"
        yield Problem(
            field=places.get(largest.stage, ""),
            message=f"stage {largest.stage} needs about {said}",
            remedy=_remedy(largest),
            fatal=needed / margin > has and by_formula > has,
            of_machine=True,
        )


def _remedy(stage: StageEstimate) -> str:
    kind = stage.kind.split()[0]
    if kind in ("gate", "measure", "serve"):
        kind = "evaluate"
    if kind in _REMEDIES:
        return _REMEDIES[kind]
    trains = kind in ("distill", "finetune", "heal", "data", "teacher", "early_exit")
    return _TRAINING if trains else "use a larger worker, or fewer or shorter calibration samples"


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
