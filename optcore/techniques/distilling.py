"""What every technique with a teacher can be told."""

from typing import Self

from pydantic import Field, model_validator

from optcore.techniques.losses import ForwardKl, Losses, needs_teacher, reads_top_k
from optcore.techniques.training import Teacher, Training


class Distilling(Training):
    """Training towards what a teacher says."""

    teacher: Teacher = "self"
    """`self`: the weights that the chain has made so far, before any quantization. `source`: the model that the chain
    started from. Or another model with the same vocabulary."""
    losses: Losses = (ForwardKl(),)
    """What is made small, and with what weight."""
    teacher_top_k: int | None = Field(default=None, ge=1, le=4096)
    """Ask the teacher once and keep its k likeliest tokens of each position on disk, the mass of all others as one: no
    teacher is in memory while the student trains, and jobs with equal data share the answers."""

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        if not needs_teacher(self.losses):
            raise ValueError("none of `losses` looks at a teacher: use `qat` or `finetune`, or add forward_kl")
        if self.teacher_top_k and not reads_top_k(self.losses):
            raise ValueError("`teacher_top_k` keeps too little for one of `losses`; forward_kl is made for it")
        return self
