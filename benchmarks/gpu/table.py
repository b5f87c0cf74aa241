"""Rows of the table, and the same for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.gpu.case import Goal
from benchmarks.gpu.limits import Limits

HEADER = (
    "| what | shape | took | of the limit | definition | speed-up | beside | apart | target | met |\n"
    "| :-- | :-- | --: | --: | --: | --: | :-- | --: | :-- | :-- |"
)


@dataclass(frozen=True)
class Row:
    """Something measured, or why it was not."""

    what: str
    shape: str
    limit: str
    """What `ideal` is by: `copy`, `bf16`, `float32`, a floor of time or a formula of memory."""
    unit: Literal["s", "bytes"] = "s"
    taken: float | None = None
    ideal: float | None = None
    """The same, were there nothing but the limit."""
    definition: float | None = None
    apart: float | None = None
    """From the definition's result, as `Case.tolerance` is; 0: not a bit."""
    beside: Mapping[str, float | str] = field(default_factory=dict)
    """Public implementations: what they took, or why they did not run."""
    goal: Goal | None = None
    problem: str = ""

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.ideal / self.taken if self.ideal and self.taken else None

    @property
    def is_met(self) -> bool | None:
        """None where nothing is aimed at, or what it is measured by is missing."""
        if self.problem:
            return False
        if self.goal is None:
            return None
        if not self.goal.rival:
            return None if self.share is None else self.share >= self.goal.least
        rival = self.beside.get(self.goal.rival)
        return rival / self.taken >= self.goal.least if self.taken and isinstance(rival, float) else None

    def markdown(self) -> str:
        """One line."""
        beside = ", ".join(f"{name} {self._amount(found)}" for name, found in self.beside.items())
        speedup = f"{self.definition / self.taken:.2f}x" if self.definition and self.taken else ""
        apart = "" if self.apart is None else ("equal" if self.apart == 0 else f"{self.apart:.1e}")
        met = self.problem or {True: "yes", False: "**no**", None: ""}[self.is_met]
        cells = [self.what, self.shape, self._amount(self.taken), self._shared(), self._amount(self.definition)]
        cells += [speedup, beside, apart, str(self.goal or ""), met]
        return f"| {' | '.join(cells)} |"

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        target = str(self.goal) if self.goal else None
        return asdict(self) | {"goal": target, "share": self.share, "met": self.is_met}

    def _shared(self) -> str:
        if self.share is None:
            return ""
        by = f"of {self.limit}" if self.limit in Limits._fields else f"({1 / self.share:.2f}x {self.limit})"
        return f"{self.share:.1%} {by}"

    def _amount(self, found: float | str | None) -> str:
        if not isinstance(found, float):
            return found or ""
        if self.unit == "bytes":
            return f"{found / 1e9:.2f} GB"
        return f"{found:.2f} s" if found >= 1 else f"{found * 1e3:.3f} ms"


def markdown_of(limits: Limits) -> str:
    """What the card was seen to do, in a line."""
    return (
        f"copy {limits.copy / 1e12:.2f} TB/s, bf16 {limits.bf16 / 1e12:.0f} TFLOP/s, "
        f"float32 {limits.float32 / 1e12:.1f} TFLOP/s, pinned to device {limits.host_to_device / 1e9:.1f} GB/s"
    )


def document_of(machine: Mapping[str, str], limits: Limits, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """All that a run found."""
    found = [row.document() for row in rows]
    return {"machine": dict(machine), "limits": limits._asdict(), "rows": found, "seconds": seconds}
