"""From a document to an estimate: read as a submission would be, then foreseen on every machine that is there."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import admission
from api.errors import ServiceError
from api.estimates.machines import machine_of, wished
from api.estimates.outlines import Outlines
from api.estimates.prices import cost
from api.estimates.turns import Turns
from api.settings import Settings
from api.store import credentials, stage_costs, workers
from api.store.models import Worker
from api.store.session import Sessions
from lathe.estimate_models import Estimate, EstimateProblem, WorkerFit
from optcore.errors import OptError
from optcore.estimate.document import Estimate as Foreseen
from optcore.estimate.document import Machine, Problem
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts
from optcore.estimate.learning import Rates
from optcore.estimate.problems import short_of_disk
from optcore.recipe import Recipe, pointer, reason, recipe_from, root_causes
from optcore.references import ModelRef
from optcore.techniques import Technique

MOST_problems = 100
MOST_models = 16
"""Of all candidates, that the Hub is asked about in one estimate; the others count as the source."""
RATES_seconds = 60.0
"""That what was learned serves: thousands of rows are read for it."""
NO_WORKER = Problem(
    message="no worker that runs engines is there now",
    remedy="start one; the job would wait until then",
    fatal=False,
)


class _Case(NamedTuple):
    """What is foreseen, whichever machine it is for."""

    recipe: Recipe
    facts: ModelFacts
    others: dict[str, ModelFacts]
    """Further models, by JSON Pointer into the recipe."""
    rates: Rates

    def on_each(self, machines: Iterable[Machine]) -> dict[Machine, Foreseen]:
        """Machines that are alike but for what is free on their disks are reckoned once."""
        if self.recipe.is_race:  # whose candidates are chosen by the disk too
            return {machine: self._on(machine) for machine in machines}
        alike: dict[Machine, Foreseen] = {}
        found: dict[Machine, Foreseen] = {}
        for machine in machines:
            without = machine.model_copy(update={"disk_free_bytes": None})
            if without not in alike:
                alike[without] = self._on(without)
            found[machine] = self._with_disk(alike[without], machine)
        return found

    def _with_disk(self, foreseen: Foreseen, machine: Machine) -> Foreseen:
        numbers = {stage.stage: int(stage.stage.partition("-")[0]) for stage in foreseen.stages}
        places = {name: f"/chain/{n - 1}" for name, n in numbers.items() if 0 < n <= len(self.recipe.chain)}
        short = short_of_disk(machine, foreseen.stages, places)
        return foreseen.model_copy(update={"machine": machine, "problems": (*foreseen.problems, *short)})

    def _on(self, machine: Machine) -> Foreseen:
        folder = Path(self.recipe.model.path) if self.recipe.model.path else None
        return estimate(self.recipe, self.facts, machine, self.rates, self.others, folder)


class Estimator:
    """Foresees jobs. What cannot be run is an answer too: a list of problems."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions
        self._outlines = Outlines()
        self._turns = Turns()
        self._rates = (-inf, Rates())

    async def estimate(self, project_id: str, document: Any) -> Estimate:
        """What a recipe's document would take. Raises what `Turns.run` does."""
        return await self._turns.run(project_id, partial(self._estimate, project_id, document))

    def _estimate(self, project_id: str, document: Any) -> Estimate:
        """Asks the Hub where the document names models there."""
        try:
            recipe = admission.admit(self._settings, recipe_from(document))
            case, there = self._case(project_id, recipe)
        except (OptError, ServiceError) as error:
            return refusal(error)
        return self._answer(case, there)

    def _case(self, project_id: str, recipe: Recipe) -> tuple[_Case, Sequence[Worker]]:
        with self._sessions() as session:
            if recipe.publish:
                admission.known_credential(session, project_id, recipe.publish.credential, "/publish/credential")
            there = [worker for worker in workers.alive(session) if worker.device]
            rates = self._learned(session)
        token = self._token_of(project_id, recipe)
        facts = self._outlines.of(project_id, recipe.model, "/model", token)
        others = {place: self._outlines.of(project_id, model, place, token) for place, model in _further(recipe)}
        return _Case(recipe, facts, others, rates), there

    def _learned(self, session: Session) -> Rates:
        """By two threads at once it may be read twice: no harm."""
        at, rates = self._rates
        if time.monotonic() - at > RATES_seconds:
            rates = Rates.from_seen(stage_costs.recent(session))
            self._rates = time.monotonic(), rates
        return rates

    def _token_of(self, project_id: str, recipe: Recipe) -> Callable[[], str | None]:
        """The token that the worker would download with; looked up only when the Hub is asked."""
        name = recipe.publish.credential if recipe.publish else "default"

        def token() -> str | None:
            with self._sessions() as session:
                return credentials.token(session, self._settings.vault, project_id, name)

        return token

    def _answer(self, case: _Case, there: Sequence[Worker]) -> Estimate:
        machines = {machine_of(worker) for worker in there} or {wished(case.recipe.hardware)}
        foreseen = case.on_each(machines)
        fits = [self._fit(worker, foreseen[machine_of(worker)]) for worker in there]
        best = min(foreseen.values(), key=lambda one: (sum(each.fatal for each in one.problems), one.seconds))
        problems = best.problems if there else (*best.problems, NO_WORKER)
        return Estimate(
            allowed_to_proceed=best.fits,
            problems=tuple(map(_problem, problems[:MOST_problems])),
            machine=best.machine,
            stages=best.stages,
            results=best.results,
            source_bytes=case.facts.weight_bytes,
            **_sums(best),
            **self._money(best),
            workers=tuple(sorted(fits, key=lambda fit: (not fit.fits, fit.seconds, fit.worker_id))),
        )

    def _fit(self, worker: Worker, foreseen: Foreseen) -> WorkerFit:
        machine = foreseen.machine
        reasons = tuple(one.message for one in foreseen.problems if one.fatal)
        return WorkerFit(
            worker_id=worker.id,
            host=worker.host,
            machine=machine,
            fits=not reasons,
            reasons=reasons,
            seconds=foreseen.seconds,
            cost=cost(foreseen.seconds, machine, self._settings.prices),
        )

    def _money(self, foreseen: Foreseen) -> dict[str, Any]:
        times = {"cost": foreseen.seconds, "cost_low": _low(foreseen), "cost_high": _high(foreseen)}
        money = {name: cost(seconds, foreseen.machine, self._settings.prices) for name, seconds in times.items()}
        return {**money, "currency": self._settings.currency if money["cost"] is not None else None}


def _further(recipe: Recipe) -> Iterator[tuple[str, ModelRef]]:
    """Models that chains name beside their source, with their place in the recipe; of candidates the first ones."""
    yield from _named("/chain", recipe.chain)
    listed = enumerate(recipe.objective.candidates if recipe.objective else ())
    yield from islice(
        (named for number, chain in listed for named in _named(f"/objective/candidates/{number}", chain)),
        MOST_models,
    )


def _named(place: str, chain: Sequence[Technique]) -> Iterator[tuple[str, ModelRef]]:
    for number, entry in enumerate(chain):
        for name, ref in {**entry.models, **entry.drafts}.items():
            yield f"{place}/{number}/{name}", ref


def refusal(error: OptError | ServiceError) -> Estimate:
    """Of what cannot be submitted at all."""
    return Estimate(allowed_to_proceed=False, problems=_problems_of(error), machine=Machine())


def _sums(foreseen: Foreseen) -> dict[str, Any]:
    return {
        "seconds": foreseen.seconds,
        "seconds_low": _low(foreseen),
        "seconds_high": _high(foreseen),
        "host_memory_bytes": foreseen.host_memory_bytes,
        "gpu_memory_bytes": foreseen.gpu_memory_bytes,
        "disk_bytes": foreseen.disk_bytes,
        "learned_from": max((stage.learned_from for stage in foreseen.stages), default=0),
    }


def _low(foreseen: Foreseen) -> float:
    return sum(stage.seconds_low for stage in foreseen.stages)


def _high(foreseen: Foreseen) -> float:
    return sum(stage.seconds_high for stage in foreseen.stages)


def _problem(problem: Problem) -> EstimateProblem:
    return EstimateProblem(
        pointer=problem.field,
        reason=problem.message,
        remedy=problem.remedy,
        fatal=problem.fatal,
        of_machine=problem.of_machine,
    )


def _problems_of(error: OptError | ServiceError) -> tuple[EstimateProblem, ...]:
    """All that a refusal complains about."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        found = root_causes(cause)[:MOST_problems]
        return tuple(EstimateProblem(pointer=pointer(each["loc"]), reason=reason(each)) for each in found)
    return (EstimateProblem(pointer=error.field, reason=error.message, remedy=error.remedy),)
