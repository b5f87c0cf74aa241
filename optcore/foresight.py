"""What a run will take, said once its model is here; one that cannot end well is refused before any stage."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optcore.errors import BadCheckpoint, OptError, OutOfDisk, OutOfMemory, SourceNotFound
from optcore.estimate.course import entrants
from optcore.estimate.document import Estimate, Machine, StageCostSeen
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts, from_folder
from optcore.estimate.learning import Rates
from optcore.estimate.machine import this_machine
from optcore.estimate.problems import short_of_disk
from optcore.estimate.seen import merged, read_seen
from optcore.events import RunEstimated
from optcore.recipe import Recipe
from optcore.references import ModelRef
from optcore.search.race import Race
from optcore.work import WorkFolder


def foresee(recipe: Recipe, fetched: dict[str, Any], work: Path, seen: Iterable[StageCostSeen]) -> Estimate | None:
    """What the stages behind the fetch will take; None for a checkpoint whose headers say too little."""
    folder = Path(fetched["source"])
    try:
        facts = from_folder(folder)
        others = {place: from_folder(Path(model["path"])) for place, model in fetched["models"].items()}
    except BadCheckpoint:
        return None
    found = _estimated(recipe, facts, work, seen, others, folder)
    return found.model_copy(update={"stages": found.stages[1:]})


def foresee_race(race: Race, work: WorkFolder, seen: Sequence[StageCostSeen]) -> None:
    """Say what the candidates of a race will take, and refuse those that this machine has no room for."""
    found = {
        runner.name: (runner, each) for runner in race.waiting if (each := runner.walk.foresee(runner.recipe, seen))
    }
    if not found:
        return
    refused = {name: error for name, (_, each) in found.items() if (error := _impossible(each, work))}
    able = [(runner.contender, each) for name, (runner, each) in found.items() if name not in refused]
    machine = _with_room(next(iter(found.values()))[1].machine, work)
    begun = list(entrants(able, free_bytes=machine.disk_free_bytes))
    told = begun or list(entrants((runner.contender, each) for runner, each in found.values()))
    race.emit(RunEstimated(machine=machine, stages=tuple(stage for one in told for stage in one.stages)))
    left_out = {one.name for one, _ in able} - {one.contender.name for one in begun}
    for name in (name for name in found if name in refused or name in left_out):
        race.refuse(found[name][0], refused.get(name) or _no_room_left())
    for problem in short_of_disk(machine, [stage for one in begun for stage in one.stages], {}):
        race.notice(f"{problem.message}: those that are stopped early may leave enough")


def _impossible(found: Estimate, work: WorkFolder) -> OptError | None:
    try:
        refuse_impossible(found, work)
    except (OutOfMemory, OutOfDisk) as error:
        return error
    return None


def _no_room_left() -> OutOfDisk:
    return OutOfDisk(
        "the disk has no room for it beside the candidates before it: refused before any work",
        remedy="list fewer candidates, free space, or use a worker with a larger disk",
        field="/chain",
    )


def refuse_impossible(found: Estimate, work: WorkFolder) -> None:
    """Raise `OutOfMemory` or `OutOfDisk` where not even the least that is expected of the stages to come fits this
    machine."""
    errors: dict[str, type[OptError]] = {"memory": OutOfMemory, "disk": OutOfDisk}
    of_memory = (problem for problem in found.problems if problem.lacks == "memory")
    of_disk = short_of_disk(_with_room(found.machine, work), found.stages, found.places)
    for problem in (*of_memory, *of_disk):
        if problem.fatal:
            said = f"{problem.message}: refused before any work"
            raise errors[problem.lacks](said, remedy=problem.remedy, field=problem.field)


def _with_room(machine: Machine, work: WorkFolder) -> Machine:
    """What finished stages hold may be what is asked for, so it counts as free."""
    free = machine.disk_free_bytes
    return machine.model_copy(update={"disk_free_bytes": None if free is None else free + work.held_bytes()})


def estimate_here(recipe: Recipe, work: Path, seen: Iterable[StageCostSeen]) -> Estimate:
    """The estimate of a recipe whose models lie on this machine: nothing is downloaded.

    Raises `SourceNotFound` for a model that was not fetched to the work folder yet.
    """
    folder = _here(recipe.model, work, "/model")
    others = dict(_others(recipe, work))
    return _estimated(recipe, from_folder(folder), work, seen, others, folder)


def _estimated(
    recipe: Recipe,
    facts: ModelFacts,
    work: Path,
    seen: Iterable[StageCostSeen],
    others: dict[str, ModelFacts],
    folder: Path,
) -> Estimate:
    rates = Rates.from_seen(merged(read_seen(work), seen))
    return estimate(recipe, facts, this_machine(work), rates, others, folder)


def _others(recipe: Recipe, work: Path) -> Iterator[tuple[str, ModelFacts]]:
    """Teachers, students and models to merge that are here; one that is not counts as the source."""
    for number, technique in enumerate(recipe.chain):
        for name, ref in technique.models.items():
            place = f"/chain/{number}/{name}"
            try:
                yield place, from_folder(_here(ref, work, place))
            except (SourceNotFound, BadCheckpoint):
                continue


def _here(model: ModelRef, work: Path, place: str) -> Path:
    folder = Path(str(model.path)) if model.path else _downloaded(model, work)
    if not (folder / "config.json").is_file():
        raise SourceNotFound(
            f"{model} is not on this machine, and an estimate downloads nothing",
            remedy="run `python -m optcore fetch` first, or name a folder",
            field=place,
        )
    return folder


def _downloaded(model: ModelRef, work: Path) -> Path:
    """Of the commit that the recipe names, or the one that came last."""
    from optcore.sources.client import HubRepo  # the Hub's library, which no other estimate needs
    from optcore.sources.hub import folder_of

    fields = {"id_field": "/model/id", "revision_field": "/model/revision"}
    repo = HubRepo(kind="model", id=str(model.id), revision=model.revision, **fields)
    exact = folder_of(repo, model.revision, work / "sources")
    if exact.is_dir() or not exact.parent.is_dir():
        return exact
    return max(exact.parent.iterdir(), key=lambda path: path.stat().st_mtime, default=exact)
