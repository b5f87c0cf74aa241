"""Quantization-aware distillation: the quantized model learns to say what it said in high precision."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from optcore.techniques.distilling import Distilling
from optcore.techniques.quantization_aware import QuantizationAware


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

    @model_validator(mode="after")
    def _blocks_are_compared_with_their_own(self) -> Self:
        beside = {"teacher", "losses", "teacher_top_k"} & self.model_fields_set
        if self.scope == "block" and any(
            getattr(self, name) != type(self).model_fields[name].default for name in beside
        ):
            raise ValueError(
                "`scope: block` compares layers with their own dense ones: leave `teacher`, `losses` and "
                "`teacher_top_k` out"
            )
        return self
