"""The table of a race, for the three renderers."""

from optcore.report.front import Candidate, Front, Goal
from optcore.report.numbers import NOTHING, format_bytes, format_number, format_seconds, format_value

_GOALS = {
    "max_bytes": ("Weights on disk", "bytes"),
    "max_bits_per_weight": ("Bits per weight", ""),
    "max_kl": ("KL to the source", "nats/token"),
    "min_tokens_per_second": ("Decode", "tokens/s"),
}
_MINIMIZED = {"bytes": "the smallest", "kl": "the nearest to the source", "seconds_per_token": "the fastest"}


def front_rows(front: Front) -> list[list[str]]:
    """Header and rows as text, in the order in which candidates began."""
    is_classifier = any(one.accuracy_loss is not None for one in front.candidates)
    loss = "Accuracy lost" if is_classifier else "KL"
    rows = [["Candidate", "Standing", "Weights", loss, "Decode", "Time", "Stages shared"]]
    return rows + [_row(one) for one in front.candidates]


def front_note(front: Front) -> str:
    """What the race cost and shared, in two sentences."""
    inferred = front.seconds_apart_inferred
    part = f", {format_seconds(inferred)} of it inferred for those that were stopped" if inferred else ""
    return (
        f"{front.stages_run} stages were run, and {front.stages_reused} times one was shared between candidates: "
        f"{format_seconds(front.seconds)} of work, where runs of their own would have taken "
        f"{format_seconds(front.seconds_apart)}{part}. "
        f"The winner is {_MINIMIZED[front.minimized]} among those that meet the goals."
    )


def goal_lines(front: Front) -> list[str]:
    """Each bound with what the winner has."""
    return [_goal_line(goal) for goal in front.goals]


def _goal_line(goal: Goal) -> str:
    title, unit = _GOALS[goal.name]
    side = "least" if goal.name.startswith("min") else "most"
    said = "met" if goal.met else "missed"
    return f"{title} {format_value(goal.value, unit)}, at {side} {format_value(goal.bound, unit)} was asked for: {said}"


def _row(one: Candidate) -> list[str]:
    loss = format_value(one.accuracy_loss, "share") if one.accuracy_loss is not None else _number(one.kl)
    status = f"{one.status} by {one.dominated_by}" if one.status == "dominated" else one.status
    size = NOTHING if one.weight_bytes is None else format_bytes(one.weight_bytes)
    speed = format_value(one.tokens_per_second, "tokens/s")
    cells = [size, loss, speed, format_seconds(one.seconds), f"{one.stages_reused}"]
    return [f"{one.name}: {one.chain}", status, *cells]


def _number(value: float | None) -> str:
    return NOTHING if value is None else format_number(value)
