"""Healing: what a change of the weights cost is won back with few parameters and little text."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.adapters import Lora
from optcore.techniques.distilling import Distilling
from optcore.techniques.training import Teacher

if TYPE_CHECKING:
    from optcore.run import Run


class Heal(Distilling):
    """Distil into norms, biases and adapters only, after pruning or another change of a dense model.

    A few hundred steps are enough to judge what a longer distillation would win, and the memory is that of one model
    and its teacher. The adapters are merged at the end.
    """

    title: ClassVar[str] = "Healing"
    paper: ClassVar[str] = "https://arxiv.org/abs/2312.15230"
    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"dense"})

    how_to_keep: ClassVar[dict[str, str]] = {
        "sparse": "leave out `lora.dropout`",
        "factored": "use `adapters: false`",
        "palettized": "use `adapters: false`",
        "shared": "use `adapters: false`",
        "tied": "use `adapters: false`",
    }

    technique: Literal["heal"] = "heal"
    teacher: Teacher = "source"
    """`source`: the model that the chain started from. Or another model with the same vocabulary."""
    steps: int = Field(default=200, ge=1, le=10**7)
    """Steps of the optimizer."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """The highest, after the warm-up: small parameters bear more than weights do."""
    adapters: bool = True
    """Train adapters too; without them, norms and biases alone."""
    lora: Lora = Lora(rank=8, alpha=16)
    """The adapters."""

    @property
    def scope(self) -> Literal["lora", "none"]:
        """What moves besides norms and biases."""
        return "lora" if self.adapters else "none"

    @property
    def keeps(self) -> frozenset[str]:
        """Weights as they are; with adapters, zeros: these are part of the weight, with no input of their own to drop
        from."""
        if not self.adapters:
            return frozenset({"sparse", "factored", "palettized", "shared", "tied"})
        return frozenset() if self.lora.dropout else frozenset({"sparse"})

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        return f"healed for {self.steps} steps"

    @model_validator(mode="after")
    def _teacher_can_answer(self) -> Self:
        if self.teacher == "self":
            raise ValueError("a model has nothing to learn from itself: name another `teacher`")
        if self.lora.base != "as_is":
            raise ValueError("healing keeps the weights as they are stored: leave `lora.base` out, or use `finetune`")
        return self

    def apply(self, run: "Run") -> None:
        """Train, then write the best weights."""
        from optcore.training.dense_stage import train_dense

        train_dense(run, self)
