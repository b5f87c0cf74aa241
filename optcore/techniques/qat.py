"""Quantization-aware training: the quantized model learns from the text itself."""

from typing import ClassVar, Literal

from optcore.techniques.quantization_aware import QuantizationAware


class Qat(QuantizationAware):
    """Adapt a quantized model to a text, by cross-entropy.

    Moves the model towards the text, away from what it was: for a task of your own. To win back what quantization cost,
    use `qad`, which published comparisons find better on every model that was tuned after pretraining.
    """

    title: ClassVar[str] = "Quantization-aware training"
    paper: ClassVar[str] = "https://arxiv.org/abs/1712.05877"

    technique: Literal["qat"] = "qat"

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        return f"trained quantized for {self.steps} steps"
