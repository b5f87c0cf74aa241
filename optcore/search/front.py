"""Which results of a race are better than which, and which of them is the one that was asked for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from optcore.report.front import Goal
from optcore.search.objective import Objective, Preference

SAME_SPEED = 0.1
"""One timed generation tells speeds apart by no less than this share; on a busy machine, by far more."""


class Point(NamedTuple):
    """What was measured of a finished candidate."""

    size: int
    """Bytes of weights."""
    bits: float
    """A weight."""
    loss: float
    """Mean KL to the source; of a classifier the accuracy that is lost."""
    speed: float | None = None
    """Decode, tokens a second."""
    is_kl: bool = True


def point(measurements: list[dict[str, Any]], size: int, parameters: int, runs: list[dict[str, Any]]) -> Point | None:
    """From rows of a report and runs in engines; None where the quality was not measured."""
    rows = {row["name"]: row for row in measurements}
    kl, accuracy = rows.get("mean_kl", {}).get("result"), rows.get("accuracy", {})
    loss = kl
    if loss is None and accuracy.get("source") is not None and accuracy.get("result") is not None:
        loss = accuracy["source"] - accuracy["result"]
    if loss is None:
        return None
    speeds = [run["decode_speed"] for run in runs if not run["is_source"] and run["decode_speed"]]
    speed = rows.get("decode_speed", {}).get("result") or max(speeds, default=None)
    return Point(size, 8 * size / parameters, loss, speed, is_kl=kl is not None)


def dominates(one: Point, other: Point) -> bool:
    """Whether one is at least as good at everything and better at something. Of two that differ in size or loss,
    speeds that a measurement cannot tell apart count as one. What was not measured is never as good as what was."""
    if one.size > other.size or one.loss > other.loss:
        return False
    differs = one.size < other.size or one.loss < other.loss
    if other.speed is None:
        return differs
    if one.speed is None:
        return False
    return one.speed >= other.speed * (1 - SAME_SPEED) if differs else one.speed > other.speed


def dominators(points: Mapping[str, Point]) -> dict[str, str]:
    """Of each point that is not on the front, the name of one on it that dominates it.

    Speeds that are alike in pairs may differ along a row of them, so only what stays on the front keeps others off it.
    No point is dominated by one behind it in the order of size, loss and speed: one pass in that order settles all.
    """
    front, found = list[str](), dict[str, str]()
    for name in sorted(points, key=lambda name: _order(points[name])):
        if by := next((other for other in front if dominates(points[other], points[name])), None):
            found[name] = by
        else:
            front.append(name)
    return found


def _order(found: Point) -> tuple[float, float, float]:
    return found.size, found.loss, -(found.speed or 0.0)


def winner(points: Mapping[str, Point], goal: Objective) -> str:
    """The best of those that meet the bounds; where none does, the one that comes nearest. One on the front, if any."""
    beaten = dominators(points)
    return min(points, key=lambda name: (shortfall(points[name], goal), name in beaten, _rank(points[name], goal)))


def goals(found: Point, goal: Objective) -> tuple[Goal, ...]:
    """Each bound with the value that a result has."""
    kl = found.loss if found.is_kl else None
    values = {"max_bytes": found.size, "max_bits_per_weight": found.bits, "max_kl": kl}
    values["min_tokens_per_second"] = found.speed
    asked = {name: bound for name in values if (bound := getattr(goal, name)) is not None}
    return tuple(
        Goal.model_validate({"name": name, "bound": bound, "value": values[name], "met": _meets(name, bound, values)})
        for name, bound in asked.items()
    )


def shortfall(found: Point, goal: Objective) -> float:
    """How far a result is from the bounds: the largest share by which it misses one, 0 where it meets them all."""
    return max((_missed(each) for each in goals(found, goal)), default=0.0)


def _meets(name: str, bound: float, values: Mapping[str, float | None]) -> bool:
    value = values[name]
    if value is None:
        return False
    return value >= bound if name == "min_tokens_per_second" else value <= bound


def _missed(goal: Goal) -> float:
    if goal.met:
        return 0.0
    if goal.value is None or goal.value <= 0:
        return float("inf")
    low, high = sorted((goal.value, goal.bound))
    return high / low - 1


def _rank(found: Point, goal: Objective) -> tuple[float, ...]:
    """What is preferred first, then the rest."""
    values: dict[Preference, float] = {
        "bytes": found.size,
        "kl": found.loss,
        "seconds_per_token": 1 / found.speed if found.speed else float("inf"),
    }
    first = goal.preference
    return (values[first], *(value for name, value in values.items() if name != first))
