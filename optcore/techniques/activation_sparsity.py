"""Activation sparsity: values of small magnitude in the inputs of linear layers count as zero."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.patterns import Pattern
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class ActivationSparsity(Restructuring):
    """Take the smallest values in the input of each of the decoder's linear layers for zero (TEAL), by thresholds that
    calibration text gives.

    The weights stay as they are. `conditional.json` holds the thresholds, and what we measure is the model with them;
    no serving engine reads it, so nothing computes faster without kernels of its own. The last entry of a chain.
    """

    title: ClassVar[str] = "Activation sparsity"
    paper: ClassVar[str] = "https://arxiv.org/abs/2408.14690"
    leaves: ClassVar[frozenset[str]] = frozenset({"thresholded", "conditional"})

    technique: Literal["activation_sparsity"] = "activation_sparsity"
    ratio: float = Field(default=0.25, ge=0, le=0.9)
    """Share of a layer's inputs that become zero, in the mean over its weights: the weights that need not be read."""
    method: Literal["threshold", "static"] = "threshold"
    """`threshold`: what is small, for each token anew. `static`: the same channels always, those of least norm."""
    allocation: Literal["uniform", "greedy"] = "uniform"
    """`uniform`: the same share of each input. `greedy`: within each layer, raise the share where that costs the
    layer's output least, until the mean is `ratio`; runs each layer some hundred times on 1024 tokens."""
    step: float = Field(default=0.05, gt=0, le=0.5)
    """By how much `greedy` raises a share at once."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder to leave alone: exact module names, or regular expressions after `re:`.
    The head and expert routers are always left."""

    @property
    def keeps(self) -> frozenset[str]:
        """Weights stay what they are, and so does their form."""
        return frozenset({"sparse", "factored", "palettized", "shared", "tied", "windowed"})

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        kind = "the smallest of each token" if self.method == "threshold" else "channels of least norm"
        return f"{self.ratio:.0%} of linear inputs taken for zero, {kind}, {self.allocation} shares"

    @property
    def trivial(self) -> dict[str, object]:
        """As many inputs, the same channels for every token."""
        return {"method": "static", "allocation": "uniform"} if self.ratio else {}

    @model_validator(mode="after")
    def _greedy_has_thresholds(self) -> Self:
        if self.method == "static" and self.allocation == "greedy":
            raise ValueError("`static` gives each input the same share: leave `allocation` out")
        return self

    def apply(self, run: "Run") -> None:
        """Link the checkpoint, and write `conditional.json`."""
        from optcore.restructure.activation_sparsity import sparsify_activations

        sparsify_activations(run, self)
