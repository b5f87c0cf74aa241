"""One of the jobs that are compared: its row, its recipe, and its report where there is one."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from api.store.models import Job
from lathe.comparison_models import CommonMeasure
from optcore.recipe import Recipe
from optcore.report import Measurement, Report
from optcore.report.numbers import GATE_METRICS

HARDWARE = "hardware"
"""Its name in the environment of a report."""

COMMON_MEASURES = {
    name: CommonMeasure(name=name, title=title, unit=unit)
    for name, title, unit in (
        ("mean_kl", *GATE_METRICS["kl"]),
        ("accuracy", "accuracy", "share"),
        ("decode_speed", "decoding", "tokens/s"),
        ("prefill_speed", "reading", "tokens/s"),
    )
}
"""Those by which losses and speeds are told."""


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

    @cached_property
    def losses(self) -> dict[str, float]:
        """What was lost in quality, by measure: KL to the source, accuracy's loss. Less is better."""
        row = self.measured.get("accuracy")
        before, after = (number(row.source), number(row.result)) if row else (None, None)
        lost = before - after if before is not None and after is not None else None
        return _known({"mean_kl": self.result("mean_kl"), "accuracy": lost})

    @property
    def hardware(self) -> str:
        """What its numbers were measured on; empty where that is not known."""
        return self.report.environment.get(HARDWARE, "") if self.report else ""

    @cached_property
    def speeds(self) -> dict[str, float]:
        """Tokens a second, by measure: decoding, and reading, which is all that a classifier does."""
        return _known({name: self.result(name) for name in ("decode_speed", "prefill_speed")})

    @property
    def seconds(self) -> float | None:
        """In workers' hands, in its last run; None before the end of it, and where none ever had it."""
        return round(self.row.run_seconds, 2) if self.row.started_at and self.row.finished_at else None

    def result(self, name: str) -> float | None:
        """What was measured of the result."""
        row = self.measured.get(name)
        return number(row.result) if row else None


def shared_measure(measured: Iterable[Mapping[str, float]]) -> str | None:
    """The first measure of those that everybody has who has one: only the same quantity compares."""
    some = [each for each in measured if each]
    return next((name for name in some[0] if all(name in each for each in some)), None) if some else None


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def number(value: float | None) -> float | None:
    """A number that can be held against another one."""
    return value if value is not None and math.isfinite(value) else None
