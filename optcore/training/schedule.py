"""How fast parameters move at each step."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optcore.techniques.training import Training


def learning_rate(step: int, settings: "Training") -> float:
    """The rate of a step counted from 0: it rises linearly over the warm-up, then falls by the schedule.

    The first step is not at zero and the last one not at the final rate: both would be steps for nothing.
    """
    warmup = math.ceil(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, settings.steps - warmup)
    lowest = settings.final_learning_rate
    return settings.learning_rate * (lowest + (1 - lowest) * _left(done, settings.schedule))


def _left(done: float, schedule: str) -> float:
    """Share of the fall that is left when a share of the steps is done."""
    if schedule == "constant":
        return 1.0
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
