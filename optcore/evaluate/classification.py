"""How well the result labels texts: accuracy and macro F1 on labelled data, and agreement with the source's labels."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.references import Label, LocalPath
from optcore.report import GateMetric, Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run


class Classification(Evaluator):
    """Accuracy and macro F1 of both models, and how often they agree, on labelled texts. For encoder classifiers."""

    title: ClassVar[str] = "Classification"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-classification"})
    gate_metrics: ClassVar[frozenset[GateMetric]] = frozenset({"accuracy", "agreement"})

    evaluator: Literal["classification"] = "classification"
    path: LocalPath | None = None
    """File (`.jsonl`, `.csv`, `.parquet`) on the machine that runs the engine; the recipe's calibration files when
    absent."""
    text: Label | None = None
    """Text column; when absent `text`, `article`, `content` or the only one."""
    label: Label = "label"
    """Column of the labels: numbers, or names that the model's `id2label` knows. Where names are numbers of their own
    (stars from 1 to 5), names are meant."""
    samples: int = Field(default=2000, ge=1, le=100_000)
    """Texts, drawn by the recipe's seed."""
    sequence_length: int = Field(default=512, ge=2, le=131_072)
    """Tokens a text; longer ones are cut, also to what the model can hold."""

    def measure(self, run: "Run") -> list[Measurement]:
        """Stream both models layer by layer over the same texts."""
        from optcore.evaluate.classification_stream import measure_classification

        return measure_classification(run, self)

    def measure_gate(self, run: "Run") -> dict[GateMetric, float]:
        """The same texts as at the end, so that a gate says what the report will."""
        from optcore.evaluate.classification_stream import classify

        found = classify(run, self)
        against_true, against_source = found["result"]
        values: dict[GateMetric, float] = {"accuracy": against_true.accuracy}
        return values | {"agreement": against_source.accuracy} if "source" in found else values
