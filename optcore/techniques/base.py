"""What a technique is: a frozen configuration, facts about what may stand before and after it, and `apply`."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from optcore.frozen import Frozen
from optcore.references import ModelRef, NeededText

if TYPE_CHECKING:
    from optcore.run import Run

GateMetric = Literal["kl", "ppl_ratio"]


class Gate(Frozen):
    """A measured bound that the stage's result must meet before anything else is done with it."""

    metric: GateMetric
    """`kl`: mean KL divergence to the source in nats a token. `ppl_ratio`: perplexity over the source's."""
    max: float
    """The largest value that passes."""
    on_fail: Literal["stop", "warn", "fallback"] = "stop"
    """`fallback` runs the stage again with the next entry of its `fallback` list."""


class Technique(Frozen):
    """One entry of a recipe's chain: changes the model, from checkpoint to checkpoint."""

    title: ClassVar[str]
    paper: ClassVar[str]
    """Where the method is described."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Properties that the input must have, such as `dense` (not quantized yet)."""
    leaves: ClassVar[frozenset[str]] = frozenset()
    """Properties that the output has on top, such as `quantized`."""
    removes: ClassVar[frozenset[str]] = frozenset()
    """Properties that the output has no longer."""

    @property
    def leaves_weights(self) -> bool:
        """Whether the high-precision weights are afterwards what they were: only what is made of them changed."""
        return "quantized" in self.leaves or "quantized" in self.needs

    gate: Gate | None = None
    """A bound on quality, measured right after the stage."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        return self.title

    @property
    def alternatives(self) -> tuple[Self, ...]:
        """Configurations to try in order when a gate fails with `on_fail: fallback`."""
        return ()

    @property
    def models(self) -> dict[str, ModelRef]:
        """Further models that it needs, by the field that names them."""
        return {}

    @property
    def texts(self) -> dict[str, NeededText]:
        """Further text that it needs, by the field that names it."""
        return {}

    def apply(self, run: "Run") -> None:
        """Read `run.checkpoint`, write the changed checkpoint to `run.out`."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _fallback_exists(self) -> Self:
        if self.gate and self.gate.on_fail == "fallback" and not self.alternatives:
            raise ValueError("gate.on_fail is 'fallback' but no fallback is listed; add `fallback: [...]`")
        return self
