"""What a job's gates ask for, and what was measured: from the report, and before there is one from what runs say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from optcore.places import attempts
from optcore.plan import gate_stage, technique_stage
from optcore.recipe import Recipe
from optcore.report import Report, Trial
from optcore.report.numbers import GATE_METRICS, format_bound, format_value
from optcore.techniques import Gate, Technique
from optcore.trials import trial

Measured = Mapping[tuple[str, str], float]
"""Last values, by stage and metric."""


@dataclass(frozen=True)
class Held:
    """One result that is, or will be, held against a gate."""

    stage: str
    tried: str
    metric: str
    asked: str
    value: str
    state: Literal["passed", "missed", "waiting"]
    then: str


def held(recipe: Recipe, report: Report | None, measured: Measured) -> list[Held]:
    """Every trial so far, and those that are sure to come, in the order of the chain."""
    if report and report.trials:
        return [_of_trial(each) for each in report.trials]
    return [each for number, entry in enumerate(recipe.chain) for each in _of_entry(number, entry, measured)]


def metrics_of(recipe: Recipe) -> list[tuple[str, str]]:
    """Stage and metric of each trial that there may be."""
    found: list[tuple[str, str]] = []
    for number, entry in enumerate(recipe.chain):
        for attempt, (_, technique) in enumerate(attempts(number, entry)):
            if technique.gate:
                found.append((gate_stage(technique_stage(number + 1, technique, attempt)), technique.gate.metric))
    return found


def _of_entry(number: int, entry: Technique, measured: Measured) -> Iterator[Held]:
    candidates = [technique for _, technique in attempts(number, entry)]
    names = [technique_stage(number + 1, each, attempt) for attempt, each in enumerate(candidates)]
    for technique, name, following in zip(candidates, names, (*names[1:], ""), strict=True):
        if technique.gate is None:
            return
        value = measured.get((gate_stage(name), technique.gate.metric))
        if value is None:
            yield _waiting(name, technique, technique.gate)
            return
        made = trial(name, technique, technique.gate, value, following)
        yield _of_trial(made)
        if made.passed or technique.gate.on_fail != "fallback":
            return


def _waiting(stage: str, technique: Technique, gate: Gate) -> Held:
    title, unit = GATE_METRICS[gate.metric]
    asked = f"at {'most' if gate.min is None else 'least'} {format_value(gate.bound, unit)}"
    on_fail = {"stop": "the job stops", "warn": "a warning", "fallback": "the next candidate"}[gate.on_fail]
    return Held(stage, technique.summary, title, asked, format_value(None), "waiting", f"if missed: {on_fail}")


def _of_trial(made: Trial) -> Held:
    title, unit = GATE_METRICS[made.metric]
    state: Literal["passed", "missed"] = "passed" if made.passed else "missed"
    value = format_value(made.value, unit)
    return Held(made.stage, made.tried, title, format_bound(made), value, state, made.then)
