"""How close the result's predictions are to the source's: perplexity, KL divergence and top-1 agreement."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


class Fidelity(Evaluator):
    """Perplexity of both models, mean KL(source || result) and top-1 agreement on text outside the calibration set."""

    title: ClassVar[str] = "Fidelity to the source"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation", "fill-mask"})

    evaluator: Literal["fidelity"] = "fidelity"
    samples: int = Field(default=32, ge=1, le=100_000)
    """Windows of text."""
    sequence_length: int = Field(default=512, ge=2, le=131_072)
    """Tokens a window; cut to what the model can hold."""

    def measure(self, run: "Run") -> list[Measurement]:
        """Stream both models layer by layer over the same windows."""
        from optcore.evaluate.fidelity_stream import measure_fidelity

        return measure_fidelity(run, self)
