"""Ways to meet an entry of the chain: the technique itself or a fallback, and how it did against its gate."""

from collections.abc import Iterator
from typing import NamedTuple

from optcore.places import attempts
from optcore.plan import technique_stage
from optcore.report import Trial
from optcore.techniques import Gate, Technique


class Attempt(NamedTuple):
    """One way to meet an entry of the chain: the technique itself, or a fallback."""

    stage: str
    technique: Technique
    place: str
    """Where it stands in the recipe, a JSON Pointer."""
    following: str
    """The stage of the next attempt; empty for the last one."""


def attempts_at(number: int, technique: Technique) -> Iterator[Attempt]:
    """An entry of the chain, its number counted from 1, and what is tried when its gate fails."""
    places, candidates = zip(*attempts(number - 1, technique), strict=True)
    names = [technique_stage(number, candidate, attempt) for attempt, candidate in enumerate(candidates)]
    for name, candidate, place, following in zip(names, candidates, places, (*names[1:], ""), strict=True):
        yield Attempt(name, candidate, place, following)


def trial_of(attempt: Attempt, gate: Gate, value: float) -> Trial:
    """What was measured of an attempt, and what happens next."""
    missed = {"stop": "stopped", "warn": "kept with a warning", "fallback": f"went on to {attempt.following}"}
    passed = gate.passes(value)
    return Trial(
        stage=attempt.stage,
        tried=attempt.technique.summary,
        metric=gate.metric,
        value=value,
        bound=gate.bound,
        better="lower" if gate.min is None else "higher",
        passed=passed,
        then="kept" if passed else missed[gate.on_fail],
    )


def said_of(trial: Trial) -> str:
    """A trial in one line for people."""
    most = "most" if trial.better == "lower" else "least"
    return f"{trial.stage}: {trial.metric} is {trial.value:.4g}, the gate asks for at {most} {trial.bound:g}"
