"""The way that a race is expected to take: who begins, what is done for the first time there, and who is finished."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from optcore.estimate.document import Estimate, StageEstimate, peak_disk
from optcore.estimate.problems import MARGIN_new
from optcore.frozen import digest_of
from optcore.plan import Result, evaluate_stage, export_stage, results, serve_stage
from optcore.recipe import Recipe
from optcore.search.contenders import Contender
from optcore.search.menu import trains

Stages = tuple[StageEstimate, ...]


class Entrant(NamedTuple):
    """A candidate that begins, with the stages that none before it has done, under its own name."""

    contender: Contender
    estimate: Estimate
    begun: Stages
    """As far as its screen: whoever begins does these."""
    finished: Stages
    """Its main result, where nothing stopped it before."""
    won: Stages
    """Its other results, which the winner alone is asked for."""

    @property
    def stages(self) -> Stages:
        """All of them."""
        return (*self.begun, *self.finished, *self.won)

    @property
    def seconds_last(self) -> float:
        """Of its main result."""
        return sum(stage.seconds for stage in self.finished)


def entrants(
    found: Iterable[tuple[Contender, Estimate]], *, seconds: float | None = None, free_bytes: int | None = None
) -> Iterator[Entrant]:
    """Those that begin, in order, as `search.race` lets them: while the budget of `seconds` lasts, one whatever it
    says; and while the disk has room for what begins and for a result."""
    met: set[str] = set()
    spent, held = 0.0, 0
    for contender, estimate in found:
        keys = {stage.stage: _key(contender.recipe, stage.stage) for stage in estimate.stages}
        one = _entrant(contender, estimate, [stage for stage in estimate.stages if keys[stage.stage] not in met])
        if spent and seconds is not None and spent >= (seconds / 2 if _is_long(contender) else seconds):
            continue
        if free_bytes is not None and (held + peak_disk(one.stages)) / MARGIN_new > free_bytes:
            continue
        yield one
        met |= set(keys.values())
        spent += sum(stage.seconds for stage in one.begun)
        held += sum(stage.disk_bytes - stage.scratch_bytes for stage in one.begun)


def most_stages(begun: Sequence[Entrant], seconds: float | None = None) -> Iterator[StageEstimate]:
    """What the race takes at most within its budget of `seconds`: nobody is stopped early, the longest last stages are
    done first, and the one with most results wins."""
    ends = sorted(begun, key=lambda one: one.seconds_last, reverse=True)
    left = None if seconds is None else seconds - sum(stage.seconds for one in begun for stage in one.begun)
    finished = {one.contender.name for one in _while_it_lasts(ends, left)}
    longest = max(begun, key=lambda one: sum(stage.seconds for stage in one.won), default=None)
    for one in begun:
        yield from one.begun
        yield from one.finished if one.contender.name in finished else ()
        yield from one.won if one is longest else ()


def least_seconds(begun: Sequence[Entrant]) -> float:
    """At the low end, of what no early stop saves: all that is begun, and the shortest way from there to a result."""
    ends = (sum(stage.seconds_low for stage in (*one.finished, *one.won)) for one in begun)
    return sum(stage.seconds_low for one in begun for stage in one.begun) + min(ends, default=0.0)


def _while_it_lasts(ends: Sequence[Entrant], left: float | None) -> Iterator[Entrant]:
    """One is finished whatever the budget says."""
    for number, one in enumerate(ends):
        if number and left is not None and left <= 0:
            return
        yield one
        left = None if left is None else left - one.seconds_last


def _is_long(contender: Contender) -> bool:
    """Whether it must begin in the first half of the budget."""
    return contender.is_planned and trains(contender.recipe.chain)


def _entrant(contender: Contender, estimate: Estimate, own: Sequence[StageEstimate]) -> Entrant:
    first, *others = results(contender.recipe)
    last, more = _last(contender.recipe, [first]), _last(contender.recipe, others)
    named = {stage.stage: stage.model_copy(update={"stage": f"{contender.name}-{stage.stage}"}) for stage in own}
    return Entrant(
        contender,
        estimate,
        begun=tuple(stage for name, stage in named.items() if name not in last | more),
        finished=tuple(stage for name, stage in named.items() if name in last),
        won=tuple(stage for name, stage in named.items() if name in more - last),
    )


def _last(recipe: Recipe, wanted: Sequence[Result]) -> set[str]:
    """Stages behind the chain that some results are asked for."""
    return {stage(recipe, result) for result in wanted for stage in (export_stage, evaluate_stage, serve_stage)}


def _key(recipe: Recipe, stage: str) -> str:
    return digest_of([stage, _behind(recipe, stage)])


def _behind(recipe: Recipe, stage: str) -> Mapping[str, object]:
    """All that a stage's result depends on: the recipe as far as its entry; of what fetches, the models alone, which
    are downloaded once."""
    number = int(stage.partition("-")[0])
    whole = recipe.model_dump(mode="json")
    if number == 0:
        named = [entry.models for entry in recipe.chain]
        return {"models": [whole["model"], *(ref.model_dump(mode="json") for each in named for ref in each.values())]}
    if number > len(recipe.chain):
        return whole
    return {"chain": whole["chain"][:number], **{name: whole[name] for name in ("model", "calibration", "seed")}}
