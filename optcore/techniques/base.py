"""What a technique is: a frozen configuration, facts about what may stand before and after it, and `apply`."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from optcore.frozen import Frozen
from optcore.references import ModelRef, NeededText
from optcore.report import GateMetric

if TYPE_CHECKING:
    from optcore.run import Run

_BOUND: dict[GateMetric, Literal["max", "min"]] = {
    "kl": "max",
    "ppl_ratio": "max",
    "agreement": "min",
    "accuracy": "min",
}


class Gate(Frozen):
    """A measured bound that the stage's result must meet before anything else is done with it."""

    metric: GateMetric
    """`kl`: mean KL divergence to the source in nats a token. `ppl_ratio`: perplexity over the source's. `agreement`:
    share of tokens (of texts, for a classifier) with the source's prediction. `accuracy`: share of texts with the true
    label; needs `classification` in `evaluate`."""
    max: float | None = None
    """The largest value of `kl` or `ppl_ratio` that passes."""
    min: float | None = None
    """The smallest value of `agreement` or `accuracy` that passes, 0 to 1."""
    on_fail: Literal["stop", "warn", "fallback"] = "stop"
    """`fallback` runs the stage again with the next entry of its `fallback` list."""

    @property
    def bound(self) -> float:
        """The value that is just good enough."""
        found = self.min if self.max is None else self.max
        assert found is not None
        return found

    def passes(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value <= self.bound if self.min is None else value >= self.bound

    @model_validator(mode="after")
    def _one_bound_that_fits(self) -> Self:
        fitting = _BOUND[self.metric]
        if [name for name in ("max", "min") if getattr(self, name) is not None] != [fitting]:
            better = "lower" if fitting == "max" else "higher"
            raise ValueError(f"{self.metric} is better the {better} it is: give `{fitting}`, and no other bound")
        return self


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

    stands_beside: ClassVar[bool] = False
    """Whether what it makes lies beside the model, which stays what it is to the bit: the chain goes on without it."""

    how_to_keep: ClassVar[dict[str, str]] = {}
    """What lets it keep a form that it may keep, by form, for people."""

    @property
    def keeps(self) -> frozenset[str]:
        """What the output still has of what others would lose: forms of weights (`sparse`), ways to run the model."""
        return frozenset()

    @property
    def makes(self) -> frozenset[str]:
        """Properties that the output has on top with these settings."""
        return self.leaves

    @property
    def leaves_weights(self) -> bool:
        """Whether the high-precision weights are afterwards what they were: only what is made of them changed."""
        return "quantized" in self.leaves or "quantized" in self.needs

    @property
    def keeps_sizes(self) -> bool:
        """Whether each linear layer has as many inputs and outputs as before, and its name."""
        return False

    @property
    def keeps_states(self) -> bool:
        """Whether hidden states stay as wide and in their basis, and layers keep their numbers: drafts read them."""
        return True

    gate: Gate | None = None
    """A bound on quality, measured right after the stage."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        return self.title

    @property
    def alternatives(self) -> "tuple[Technique, ...]":
        """What to try in order when a gate fails with `on_fail: fallback`.

        What needs a quantized model goes on from the result that failed; anything else starts where this one did.
        """
        return ()

    @property
    def models(self) -> dict[str, ModelRef]:
        """Further models that it needs, by the field that names them."""
        return {}

    @property
    def drafts(self) -> dict[str, ModelRef]:
        """Drafts that it begins with, by the field that names them."""
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
