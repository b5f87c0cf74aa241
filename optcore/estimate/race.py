"""What a recipe that stands for several chains will take: those of its candidates that can begin, what they share once.

That is the most: a race stops those that cannot win, and how early is not known before.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from optcore.estimate.chain import estimate_chain
from optcore.estimate.course import Entrant, entrants, least_seconds, most_stages
from optcore.estimate.document import Estimate, Machine, Problem, ResultEstimate, StageEstimate
from optcore.estimate.facts import ModelFacts
from optcore.estimate.learning import Rates
from optcore.estimate.problems import short_of_disk, short_of_time
from optcore.estimate.weight import weigh
from optcore.plan import fitting
from optcore.recipe import Recipe
from optcore.search.contenders import Contender, goal
from optcore.search.judgement import too_large


class _Case(NamedTuple):
    """What candidates are reckoned on."""

    facts: ModelFacts
    machine: Machine
    rates: Rates | None
    others: Mapping[str, ModelFacts]
    folder: Path | None


def estimate_race(
    recipe: Recipe,
    facts: ModelFacts,
    machine: Machine,
    rates: Rates | None,
    others: Mapping[str, ModelFacts] | None = None,
    folder: Path | None = None,
) -> Estimate:
    """The arguments are those of `estimate`; time and disk are what all candidates share. Raises `RecipeError` for a
    chain that does not fit."""
    asked = list(_asked(recipe, _Case(facts, machine, rates, others or {}, folder)))
    budget = goal(recipe).budget
    able = [(one, found) for one, found in asked if found.fits]
    begun = list(entrants(able, seconds=budget.seconds, free_bytes=machine.disk_free_bytes))
    stages = tuple(most_stages(begun, budget.seconds))
    refused = list(_refused(asked, is_fatal=not able))
    if not begun:
        if able:
            refused += _no_room(able, machine)
        return Estimate(machine=machine, stages=(), results=(), problems=tuple(refused))
    wanted = len(list(entrants(able, seconds=budget.seconds)))
    problems = [
        *_of_all((one.contender, problem) for one in begun for problem in one.estimate.problems),
        *refused,
        *_short_of_disk(recipe, machine, stages, (len(begun), wanted)),
        *short_of_time(recipe, stages, least_seconds(begun)),
    ]
    named = tuple(result for one in begun for result in _results(one))
    return Estimate(machine=machine, stages=stages, results=named, problems=tuple(problems))


def _asked(recipe: Recipe, case: _Case) -> Iterator[tuple[Contender, Estimate]]:
    """Every candidate alone, as far as the budget counts them: who is refused with the download does not count."""
    room = goal(recipe).budget.candidates
    for one in fitting(recipe):
        if room == 0:
            return
        found = _alone(one, case, recipe)
        yield one, found
        if room is not None and found.stages:
            room -= 1


def _alone(one: Contender, case: _Case, recipe: Recipe) -> Estimate:
    """One candidate, but for its share of the disk and of the time."""
    if (weight := weigh(one.recipe, case.facts)) and (why := too_large(*weight, goal(recipe))):
        said = Problem(field="/objective", message=f"it will have {why}", remedy="raise the bound")
        return Estimate(machine=case.machine, stages=(), results=(), problems=(said,))
    unlimited = one.recipe.limits.model_copy(update={"max_run_seconds": None})
    alone = one.recipe.model_copy(update={"limits": unlimited})
    machine = case.machine.model_copy(update={"disk_free_bytes": None})
    entries = enumerate(one.recipe.chain)
    places = [f"/chain/{number}/{name}" for number, entry in entries for name in (*entry.models, *entry.drafts)]
    others = {place: case.others[one.place(place)] for place in places if one.place(place) in case.others}
    return estimate_chain(alone, case.facts, machine, case.rates, others, case.folder)


def _refused(asked: Sequence[tuple[Contender, Estimate]], *, is_fatal: bool) -> Iterator[Problem]:
    """Why candidates do not begin; a warning where others do."""
    together: dict[Problem, list[str]] = {}
    for one, found in asked:
        for problem in (each for each in found.problems if each.fatal):
            placed = problem.model_copy(update={"field": one.origin(problem.field), "fatal": is_fatal})
            together.setdefault(placed, []).append(f"{one.name} ({one.said})")
    for problem, names in together.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield problem.model_copy(update={"message": f"{names[0]}{more} cannot begin: {problem.message}"})


def _of_all(found: Iterator[tuple[Contender, Problem]]) -> Iterator[Problem]:
    """Of those that begin, in terms of the recipe that stands for all; what several share is said once."""
    met: set[tuple[str, str]] = set()
    for one, problem in found:
        field = one.origin(problem.field)
        if (field, problem.message) not in met:
            met.add((field, problem.message))
            message = one.saying(problem.message) if field == "/sweep" else problem.message
            yield problem.model_copy(update={"field": field, "message": message})


def _no_room(able: Sequence[tuple[Contender, Estimate]], machine: Machine) -> Iterator[Problem]:
    """Where not even the smallest candidate has room."""
    one, found = min(able, key=lambda each: each[1].disk_bytes)
    for problem in short_of_disk(machine, found.stages, {}):
        yield problem.model_copy(update={"field": one.origin("/chain")})


def _short_of_disk(
    recipe: Recipe, machine: Machine, stages: Sequence[StageEstimate], room: tuple[int, int]
) -> Iterator[Problem]:
    """Warnings, for as many candidates begin as there is `room` for, of so many."""
    field, (begun, wanted) = "/sweep" if recipe.sweep else "/objective", room
    if begun < wanted:
        yield Problem(
            field=field,
            message=f"the disk has room for {begun} of {wanted} candidates, and what each leaves stays until the end: "
            "the others will not begin",
            remedy="list fewer candidates, free space, or use a worker with a larger disk",
            fatal=False,
        )
        return
    for problem in short_of_disk(machine, stages, {}):
        yield problem.model_copy(update={"field": field, "fatal": False})


def _results(one: Entrant) -> Iterator[ResultEstimate]:
    for result in one.estimate.results:
        yield result.model_copy(update={"candidate": one.contender.name})
