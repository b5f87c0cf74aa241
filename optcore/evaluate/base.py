"""What an evaluator is: a frozen configuration and a measurement of source and result."""

from typing import TYPE_CHECKING, ClassVar

from optcore.frozen import Frozen
from optcore.report import GateMetric, Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


class Evaluator(Frozen):
    """Measures the source and the result in the same run, on the same input."""

    title: ClassVar[str]
    tasks: ClassVar[frozenset[Task]]
    """What a model must be for, so that it can be measured."""
    gate_metrics: ClassVar[frozenset[GateMetric]] = frozenset()
    """Values that gates may ask for."""
    reads_export: ClassVar[bool] = False
    """Whether it measures the files of a target, rather than the checkpoint that all targets are written from."""

    def measure(self, run: "Run") -> list[Measurement]:
        """Rows of the before/after table."""
        raise NotImplementedError

    def measure_gate(self, run: "Run") -> dict[GateMetric, float]:
        """The `gate_metrics` of the checkpoint that a technique has just left."""
        raise NotImplementedError
