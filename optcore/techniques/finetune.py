"""Fine-tuning: the model learns from text."""

from typing import TYPE_CHECKING, ClassVar, Literal

from optcore.techniques.dense_training import DenseTraining

if TYPE_CHECKING:
    from optcore.run import Run


class Finetune(DenseTraining):
    """Adapt the model to a text, by cross-entropy, before it is quantized.

    Moves the model towards the text, away from what it was. Windows of text that are not trained on choose the best
    parameters.
    """

    title: ClassVar[str] = "Fine-tuning"
    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"

    technique: Literal["finetune"] = "finetune"

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        return f"fine-tuned for {self.steps} steps"

    def apply(self, run: "Run") -> None:
        """Train, then write the best weights."""
        from optcore.training.dense_stage import train_dense

        train_dense(run, self)
