"""A race: every candidate follows its chain on one work folder, is measured cheaply, and goes on while it may win.

What candidates share is done once, because a stage is found by its key. Who is out is asked anew after each
measurement, so that a candidate that was out because of another one is in again when that one fails.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Protocol

from optcore.artifact import Outcome
from optcore.child import ReportedFailure
from optcore.conductor import Emit
from optcore.errors import BadCheckpoint, GateFailed, OptError, RecipeError, StageCrashed
from optcore.estimate.facts import from_folder
from optcore.estimate.weight import weigh
from optcore.events import Metric, Notice, RecipeResolved, RunPlanned
from optcore.fetching import commits_of, pinned
from optcore.plan import evaluate_stage, fitting, results
from optcore.recipe import Recipe
from optcore.report import Goal
from optcore.report.numbers import format_bytes
from optcore.search.contenders import goal
from optcore.search.front import Point, goals, shortfall, winner
from optcore.search.judgement import Screened, loses, too_large
from optcore.search.ledger import front_of, seconds_spent
from optcore.search.menu import trains
from optcore.search.objective import Objective
from optcore.search.runner import Runner, Walk
from optcore.stage import StageRecord

_FORGIVEN = ("user_error", "quality_gate", "out_of_memory", "internal")
"""Kinds of failure that may be one candidate's own, as is a stage that crashed, which its walk ran twice; any other one
ends the run, which is then tried again."""


class MakeWalk(Protocol):
    """Makes a walk on the run's work folder."""

    def __call__(self, *, label: str, met: dict[str, StageRecord]) -> Walk:
        """`met` is what the walks of this run share."""


@dataclass
class Race:
    """One run of a recipe that stands for several chains."""

    recipe: Recipe
    make: MakeWalk
    emit: Emit
    runners: list[Runner] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    planned: tuple[str, ...] = ()
    """The stages that were said last."""

    def fetch(self) -> Recipe:
        """Bring models and data of all candidates here, and refuse those that cannot be. The recipe with its commits.

        Raises `RecipeError` when none is left.
        """
        met: dict[str, StageRecord] = {}
        for contender in fitting(self.recipe):
            walk = self.make(label=f"{contender.name}-", met=met)
            self.runners.append(Runner(contender, walk, contender.recipe))
        self._plan()
        for runner in self.runners:
            self._bring(runner)
        resolved = self._resolved()
        self._refuse()
        self.emit(RecipeResolved(recipe=resolved.model_dump(mode="json")))
        return resolved

    def run(self) -> list[Outcome]:
        """After `fetch`: the winner's results, the main one first, with the front.

        Raises `GateFailed` when none is good enough and that matters, and the first candidate's error when all failed.
        """
        self._plan()
        for runner in self.waiting:
            if not self._is_over(runner):
                self._do(runner, runner.begin)
        while best := self._next():
            self._do(best, best.finish)
            self._say(best)
        return self._end()

    @property
    def waiting(self) -> list[Runner]:
        """Who may begin."""
        return [runner for runner in self.runners if runner.is_waiting]

    def _bring(self, runner: Runner) -> None:
        """What is wrong with the model, or with what a candidate names, ends the run; what does not fit refuses one."""
        contender = runner.contender
        try:
            runner.recipe = runner.walk.bring(contender.recipe)
        except ReportedFailure as error:
            place = contender.place(error.reported.field)
            raise ReportedFailure(error.reported.model_copy(update={"field": place})) from error
        except RecipeError as error:
            runner.refused, runner.error = str(error), contender.located(error)
        else:
            if runner.walk.inputs.task == "text-classification" and self.goal.max_kl is not None:
                raise RecipeError(
                    "a classifier is measured by its accuracy, not by its KL",
                    remedy="leave `max_kl` out, and give the candidates gates on `accuracy`",
                    field="/objective/max_kl",
                )
            self._weigh(runner)

    def _weigh(self, runner: Runner) -> None:
        """Refuse a candidate whose size is known to be beyond a bound."""
        if not self.goal.is_about_size:
            return
        try:
            weight = weigh(runner.recipe, from_folder(Path(runner.walk.inputs.source)))
        except (BadCheckpoint, ArithmeticError, LookupError, TypeError, ValueError):
            return  # what formulas do not know is weighed once it is made
        if weight and (why := too_large(weight.size, weight.parameters, self.goal)):
            runner.refused = f"it will have {why}"

    def _refuse(self) -> None:
        """Say who does not begin; the run fails here when nobody is left."""
        limit = self.goal.budget.candidates
        for runner in self.waiting[limit:] if limit else ():
            runner.stopped = f"the budget has room for {limit} candidates"
        for runner in self.runners:
            if why := runner.refused or runner.stopped:
                self._notice(runner, f"{'refused' if runner.refused else 'not begun'}: {why}")
        self._require_somebody()

    def refuse(self, runner: Runner, error: OptError) -> None:
        """Let a candidate not begin, for an error of its own recipe. Raises as `fetch` does when nobody is left."""
        runner.refused, runner.error = str(error), runner.contender.located(error)
        self._notice(runner, f"refused: {error}")
        self._require_somebody()

    def notice(self, message: str) -> None:
        """Say something of the whole race, now and in the report."""
        self.notices.append(message)
        self.emit(Notice(stage=f"{self.runners[0].name}-0-fetch", message=message))

    def _require_somebody(self) -> None:
        if not self.waiting:
            found = next((runner.error for runner in self.runners if runner.error), None)
            raise found or RecipeError(
                "no candidate can meet the goal: "
                + "; ".join(f"{runner.contender.said}: {runner.refused}" for runner in self.runners[:4]),
                remedy="raise the bound, or list chains that leave less of the model",
                field="/objective",
            )

    def _resolved(self) -> Recipe:
        """The recipe that stands for all, with the commits that any of them brought."""
        found = [runner for runner in self.runners if "0-fetch" in runner.walk.records]
        commits = {
            runner.contender.place(place): commit
            for runner in found
            for place, commit in commits_of(runner.walk.records["0-fetch"].results).items()
        }
        return pinned(self.recipe, commits)

    def _do(self, runner: Runner, work: Callable[[], None]) -> None:
        """Go on with a candidate; what is its own fault alone puts it out of the race."""
        try:
            work()
        except OptError as error:
            failure = error.failure()
            is_forgiven = failure.kind in _FORGIVEN and not failure.retryable
            if not is_forgiven and not isinstance(error, StageCrashed):
                raise
            runner.error = error
        if runner.error:
            self._notice(runner, f"failed: {runner.error}")
        self._judge()
        self._plan()

    def _judge(self) -> None:
        """Who is out, by all that is known now."""
        seen = [(runner, runner.screened) for runner in self.runners if runner.screened and runner.is_in]
        for runner, screened in seen:
            if runner.point:
                continue
            others = [other for one, other in seen if one is not runner]
            before, runner.stopped = runner.stopped, loses(screened, others, self.goal)
            if runner.stopped and not before:
                self._notice(runner, f"stopped early: {runner.stopped}")

    def _is_over(self, runner: Runner) -> bool:
        """Whether the budget has no time left for a candidate; one is begun whatever it says."""
        limit = self.goal.budget.seconds
        if limit is None or not any(one.is_in for one in self.runners):
            return False
        is_long = runner.contender.is_planned and trains(runner.contender.recipe.chain)
        if seconds_spent(self.runners) < (limit / 2 if is_long else limit):
            return False
        runner.stopped = f"the budget of {limit} seconds had no room for it"
        self._notice(runner, f"not begun: {runner.stopped}")
        return True

    def _next(self) -> Runner | None:
        """Whom to finish: in the order of the preference, as far as it can be told; never nobody."""
        open_ = [runner for runner in self.runners if runner.is_in and runner.point is None]
        finished = any(runner.point for runner in self.runners if runner.is_in)
        limit = self.goal.budget.seconds
        if finished and limit is not None and seconds_spent(self.runners) >= limit:
            for runner in open_:
                runner.stopped = runner.stopped or f"the budget of {limit} seconds had no room to finish it"
            return None
        standing = [runner for runner in open_ if not runner.stopped]
        if not standing and not finished and self._miss != "fail":
            standing = open_
        return min(standing, key=self._promise, default=None)

    def _promise(self, runner: Runner) -> tuple[float, ...]:
        """How good a candidate may be, by what its screen says; the smaller the better."""
        assert runner.screened
        found = _foreseen(runner.screened)
        first = found.loss if self.goal.preference == "kl" else found.size
        return (shortfall(found, self._known_bounds), first, found.loss)

    @property
    def goal(self) -> Objective:
        """What is asked for."""
        return goal(self.recipe)

    @property
    def _known_bounds(self) -> Objective:
        """Without the bound on speed, which no screen measures."""
        return self.goal.model_copy(update={"min_tokens_per_second": None})

    @property
    def _miss(self) -> str:
        return self.goal.on_miss or ("fail" if self.recipe.publish else "nearest")

    def _say(self, runner: Runner) -> None:
        """What the race knows of a candidate now, as numbers."""
        if runner.point:
            stage = f"{runner.name}-{evaluate_stage(runner.recipe, runner.main)}"
            self.emit(Metric(stage=stage, name="weight_bytes", value=runner.point.size))

    def _end(self) -> list[Outcome]:
        points = {runner.name: runner.point for runner in self.runners if runner.point}
        if not points:
            raise self._nobody()
        name = winner(points, self.goal)
        first = next(runner for runner in self.runners if runner.name == name)
        if shortfall(points[name], self.goal):
            self._miss_said(first, points[name])
        assert first.outcome
        more = [first.walk.finish(result, first.recipe) for result in results(first.recipe)[1:]]
        notices = (*first.outcome.notices, *self.notices)
        front = front_of(self.runners, name, self.goal)
        return [first.outcome._replace(notices=notices, front=front), *more]

    def _miss_said(self, runner: Runner, found: Point) -> None:
        """The nearest result as a notice, or as the reason that there is none."""
        missed = "; ".join(_said(each) for each in goals(found, self.goal) if not each.met)
        said = f"no candidate meets the goal; the nearest, {runner.name} ({runner.contender.said}), misses it: {missed}"
        if self._miss == "fail":
            remedy = "widen the bound, or ask for the nearest one with `on_miss: nearest`: what was made is kept"
            raise GateFailed(said, remedy=remedy, field="/objective")
        self._notice(runner, said)

    def _nobody(self) -> OptError:
        """Why there is no result: all of them are out by their screens, or failed."""
        out = [runner for runner in self.runners if runner.is_in]
        if not out:
            errors = [runner.error for runner in self.runners if runner.error and not runner.refused]
            return errors[0]
        nearest = min(out, key=self._promise)
        said = f"no candidate meets the goal; the nearest, {nearest.name} ({nearest.contender.said}): {nearest.stopped}"
        remedy = "widen the bound, or ask for the nearest one with `on_miss: nearest`: what was made is kept"
        return GateFailed(said, remedy=remedy, field="/objective")

    def _notice(self, runner: Runner, message: str) -> None:
        self.notices.append(f"{runner.name}: {message}")
        last = next(reversed(runner.walk.records), "0-fetch")
        self.emit(Notice(stage=f"{runner.name}-{last}", message=f"{runner.name}: {message}"))

    def _plan(self) -> None:
        """Say the stages to come, as far as they are known now."""
        stages = tuple(stage for runner in self.runners for stage in runner.stages)
        if stages != self.planned:
            self.planned = stages
            self.emit(RunPlanned(stages=stages))


def _foreseen(screened: Screened) -> Point:
    size = screened.size if screened.size is not None else 0
    return Point(size, 8 * size / screened.parameters, fmean(screened.kl_W) if screened.kl_W else 0.0)


def _said(missed: Goal) -> str:
    side = "least" if missed.name.startswith("min") else "most"
    title = _TITLES[missed.name]
    value = "not measured" if missed.value is None else _number(missed.name, missed.value)
    return f"{title} {value}, and at {side} {_number(missed.name, missed.bound)} is asked for"


_TITLES = {
    "max_bytes": "it has",
    "max_bits_per_weight": "bits a weight are",
    "max_kl": "its KL is",
    "min_tokens_per_second": "tokens a second are",
}


def _number(name: str, value: float) -> str:
    return format_bytes(value) if name == "max_bytes" else f"{value:.4g}"
