"""How close the result's predictions are to the source's: perplexity, KL divergence and top-1 agreement."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import GateMetric, Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


class Fidelity(Evaluator):
    """Perplexity of both models, mean KL(source || result) and top-1 agreement on text outside the calibration set."""

    title: ClassVar[str] = "Fidelity to the source"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation", "fill-mask"})
    gate_metrics: ClassVar[frozenset[GateMetric]] = frozenset({"kl", "ppl_ratio", "agreement"})

    evaluator: Literal["fidelity"] = "fidelity"
    samples: int = Field(default=32, ge=1, le=100_000)
    """Windows of text."""
    sequence_length: int = Field(default=512, ge=2, le=131_072)
    """Tokens a window; cut to what the model can hold."""

    def measure(self, run: "Run") -> list[Measurement]:
        """Stream both models layer by layer over the same windows."""
        from optcore.evaluate.fidelity_stream import measure_fidelity

        return measure_fidelity(run, self)

    def measure_gate(self, run: "Run") -> dict[GateMetric, float]:
        """The same windows as at the end, so that a gate says what the report will."""
        from optcore.evaluate.fidelity_stream import compare

        found, _ = compare(run, self.samples, self.sequence_length)
        source, result = found["source"], found["result"]
        ratio = result.perplexity / source.perplexity
        return {"kl": result.mean_kl, "ppl_ratio": ratio, "agreement": result.agreement}
