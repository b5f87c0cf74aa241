"""What a race took, what its candidates would have taken apart, and where each of them ended."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from optcore.paths import public
from optcore.plan import screen_stage
from optcore.report import Candidate, Front
from optcore.report.front import Standing
from optcore.search.front import dominators, goals
from optcore.search.objective import Objective
from optcore.search.runner import Runner
from optcore.stage import StageRecord


def seconds_spent(runners: Sequence[Runner]) -> float:
    """Of the stages that candidates needed so far, each once, and of those that failed: the same for a run that was
    interrupted, which tries these again."""
    return sum(record.seconds for _, record in _firsts(runners)) + sum(one.walk.lost_seconds for one in runners)


def front_of(runners: Sequence[Runner], winner: str, goal: Objective) -> Front:
    """Every candidate with its place, and the count of what they shared."""
    points = {runner.name: runner.point for runner in runners if runner.point}
    beaten = dominators(points)
    own: dict[str, list[StageRecord]] = {runner.name: [] for runner in runners}
    for name, record in _firsts(runners):
        own[name].append(record)
    candidates = tuple(_candidate(runner, own[runner.name], beaten.get(runner.name, ""), winner) for runner in runners)
    measured, inferred = _apart(runners)
    return Front(
        candidates=candidates,
        goals=goals(points[winner], goal),
        minimized=goal.preference,
        stages_run=sum(candidate.stages_run for candidate in candidates),
        stages_reused=sum(candidate.stages_reused for candidate in candidates),
        seconds=seconds_spent(runners),
        seconds_apart=measured + inferred,
        seconds_apart_inferred=inferred,
    )


def _firsts(runners: Sequence[Runner]) -> Iterator[tuple[str, StageRecord]]:
    """Each stage once, with the candidate that needed it first."""
    seen = set()
    for runner in runners:
        for record in runner.walk.records.values():
            if record.key not in seen:
                seen.add(record.key)
                yield runner.name, record


def _apart(runners: Sequence[Runner]) -> tuple[float, float]:
    """Seconds of all candidates that began, each alone and to its end, and what of it nobody measured; a screen is the
    race's own."""
    begun = [runner for runner in runners if len(runner.walk.records) > 1]
    measured = sum(runner.walk.lost_seconds for runner in begun) + sum(
        record.seconds
        for runner in begun
        for name, record in runner.walk.records.items()
        if name != screen_stage(runner.recipe)
    )
    ends = [sum(record.seconds for record in one.last_stages.values()) for one in begun if one.point]
    stopped = [runner for runner in begun if runner.is_in and not runner.point]
    return measured, fmean(ends) * len(stopped) if ends else 0.0


def _candidate(runner: Runner, own: list[StageRecord], dominated_by: str, winner: str) -> Candidate:
    screened, point = runner.screened, runner.point
    size = point.size if point else (screened.size if screened else None)
    kl = (point.loss if point.is_kl else None) if point else None
    if point is None and screened and screened.kl_W:
        kl = fmean(screened.kl_W)
    alone = public(runner.recipe).model_copy(update={"publish": None})
    return Candidate(
        name=runner.name,
        chain=runner.contender.said,
        recipe=alone.model_dump(mode="json"),
        status=_status(runner, dominated_by, winner),
        why="" if point else runner.refused or runner.stopped or str(runner.error or ""),
        weight_bytes=size,
        bits_per_weight=8 * size / screened.parameters if size is not None and screened else None,
        kl=kl,
        accuracy_loss=point.loss if point and not point.is_kl else None,
        tokens_per_second=point.speed if point else None,
        seconds=sum(record.seconds for record in own) + runner.walk.lost_seconds,
        stages_run=len(own),
        stages_reused=len(runner.walk.records) - len(own),
        dominated_by=dominated_by,
    )


def _status(runner: Runner, dominated_by: str, winner: str) -> Standing:
    if runner.name == winner:
        return "winner"
    if runner.point:
        return "dominated" if dominated_by else "front"
    if runner.refused:
        return "refused"
    return "failed" if runner.error else "stopped"
