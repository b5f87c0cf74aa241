"""Results held against gates."""

from optcore.report import Trial
from optcore.techniques import Gate, Technique


def trial(stage: str, technique: Technique, gate: Gate, value: float, following: str) -> Trial:
    """What was measured of a stage, and what comes of it; `following` is the stage of the next candidate."""
    missed = {"stop": "stopped", "warn": "kept with a warning", "fallback": f"went on to {following}"}
    passed = gate.passes(value)
    return Trial(
        stage=stage,
        tried=technique.summary,
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
