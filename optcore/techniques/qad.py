"""Quantization-aware distillation: the quantized model learns to say what it said in high precision."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.techniques.distilling import Distilling
from optcore.techniques.quantization_aware import QuantizationAware

if TYPE_CHECKING:
    from optcore.run import Run


class Qad(Distilling, QuantizationAware):
    """Win back what quantization cost, by distillation from the model's own high-precision weights.

    Needs no labels and little text, keeps what reinforcement learning or instruction tuning taught, and is the first
    choice where post-training quantization costs too much. Stops at once, and says so, where there is nothing to win.
    """

    title: ClassVar[str] = "Quantization-aware distillation"
    paper: ClassVar[str] = "https://arxiv.org/abs/2601.20088"

    technique: Literal["qad"] = "qad"

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        return f"distilled for {self.steps} steps"

    def apply(self, run: "Run") -> None:
        """Train, then write the codes of the best weights."""
        from optcore.training.quantized_stage import train_quantized

        train_quantized(run, self)
