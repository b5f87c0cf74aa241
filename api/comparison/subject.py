"""One of the jobs that are compared: its row, its recipe, and its report where there is one."""

import math
from dataclasses import dataclass
from functools import cached_property

from api.store.models import Job
from optcore.recipe import Recipe
from optcore.report import Measurement, Report

_SPEEDS = ("decode_speed", "prefill_speed")


@dataclass(frozen=True)
class Subject:
    """A job as a comparison sees it."""

    row: Job
    recipe: Recipe
    report: Report | None

    @property
    def title(self) -> str:
        """What people call it."""
        return self.recipe.name or self.row.id

    @property
    def summary(self) -> str:
        """What its chain did, or is to do, in one line."""
        if self.report:
            return self.report.scheme
        steps = (step.model_dump() for step in self.recipe.chain)
        return ", ".join(" ".join(str(step[k]) for k in ("technique", "scheme") if k in step) for step in steps)

    @cached_property
    def measured(self) -> dict[str, Measurement]:
        """The rows of its report by name."""
        return {row.name: row for row in self.report.measurements} if self.report else {}

    @property
    def weight_bytes(self) -> float | None:
        """Of the result."""
        return self.result("weight_bytes")

    @property
    def quality(self) -> float | None:
        """What was lost: KL to the source; accuracy's loss of a model that labels texts. Less is better."""
        loss = self.result("mean_kl")
        if loss is None and (row := self.measured.get("accuracy")):
            before, after = number(row.source), number(row.result)
            loss = before - after if before is not None and after is not None else None
        return loss

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding where that was measured; else reading, which is all that a classifier does."""
        speeds = (self.result(name) for name in _SPEEDS)
        return next((speed for speed in speeds if speed is not None), None)

    @property
    def seconds(self) -> float | None:
        """From its first claim to its end."""
        begin, end = self.row.started_at, self.row.finished_at
        return round((end - begin).total_seconds(), 2) if begin and end else None

    def result(self, name: str) -> float | None:
        """What was measured of the result."""
        row = self.measured.get(name)
        return number(row.result) if row else None


def number(value: float | None) -> float | None:
    """A number that can be held against another one."""
    return value if value is not None and math.isfinite(value) else None
