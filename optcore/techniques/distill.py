"""Distillation: a model learns to say what another one says."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.references import ModelRef
from optcore.techniques.dense_training import DenseTraining
from optcore.techniques.distilling import Distilling
from optcore.techniques.training import Teacher

if TYPE_CHECKING:
    from optcore.run import Run


class Distill(Distilling, DenseTraining):
    """Teach a model in high precision what its teacher says: win back what an earlier change of the weights cost, or
    train a smaller student.

    The student is what the chain has made so far, or another model with the same vocabulary.
    """

    title: ClassVar[str] = "Distillation"
    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"

    how_to_keep: ClassVar[dict[str, str]] = {
        "sparse": "leave out `student` and `lora.dropout`",
        "factored": "leave out `student`, and use `scope: full`, which trains the factors",
        "palettized": "leave out `student`, and use `scope: full`, which trains the tables",
        "shared": "leave out `student`, and use `scope: full`, which trains the shared numbers",
        "tied": "leave out `student`, and use `scope: full`, which trains tied layers as one",
    }

    technique: Literal["distill"] = "distill"

    student: ModelRef | None = None
    """Another model that learns, in place of the chain's; the chain goes on with it."""
    teacher: Teacher = "source"
    """`source`: the model that the chain started from. `self`: the weights that the chain has made so far. Or another
    model with the same vocabulary."""
    on_policy: float = Field(default=0.0, ge=0, le=1)
    """Share of each batch in which the student is judged on what it writes itself, going on from the first
    `data.prompt_tokens` of a window (arXiv:2306.13649). Costs a token's time for each token that it writes."""

    @property
    def keeps(self) -> frozenset[str]:
        """Nothing of the chain's model, where another one takes its place."""
        return super().keeps if self.student is None else frozenset()

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        return f"distilled for {self.steps} steps"

    @model_validator(mode="after")
    def _teacher_can_answer(self) -> Self:
        if self.on_policy and self.teacher_top_k:
            raise ValueError("`teacher_top_k` knows no answers to what the student writes; leave out `on_policy`")
        if self.teacher == "self" and self.student is None:
            raise ValueError("a model has nothing to learn from itself: name a `teacher` or a `student`")
        return self

    def apply(self, run: "Run") -> None:
        """Train, then write the best weights."""
        from optcore.training.dense_stage import train_dense

        train_dense(run, self)
