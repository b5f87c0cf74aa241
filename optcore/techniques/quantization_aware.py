"""What QAT and QAD share: they go on from a quantized checkpoint, and leave one in the same formats."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.adapters import Lora
from optcore.techniques.data import TrainingData
from optcore.techniques.training import Training

if TYPE_CHECKING:
    from optcore.run import Run


class QuantizationAware(Training):
    """Train through the rounding of a quantized model: what is exported is what was trained."""

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})

    scope: Literal["full", "lora", "scales", "block"] = "full"
    """What moves. `full`: the weights of all quantized layers. `lora`: adapters, whose part is added to a weight before
    it is rounded. `scales`: their scales only, the codes follow. `block`: weights, one decoder layer after the other,
    each towards what the dense one gives; only one is in memory, so a model of any depth trains where one layer fits.
    `steps` are those of each layer then, the text is not packed, and only hidden states are compared: `losses` and a
    teacher of another kind do not apply."""
    lora: Lora = Lora()
    """Settings of `scope: lora`."""
    propagate: Literal["quantized", "original"] = "quantized"
    """What a layer is trained on in `scope: block`. `quantized`: on what the trained layers before it give, so that it
    makes up for their errors. `original`: on what the dense layers give."""
    norms: bool = False
    """Train norms and biases of the decoder layers too."""
    scales: Literal["auto", "freeze", "recompute"] = "auto"
    """What scales of weights do while weights move. `recompute`: the maximum at every step. `freeze`: they stay.
    `auto`: recomputed where they were plain maxima, frozen where they were searched."""
    skip_below: float = Field(default=1e-3, ge=0)
    """Nats a token. Where the quantized model's divergence from its teacher is below this, there is nothing to win, and
    nothing is trained."""

    @property
    def prepared_data(self) -> TrainingData:
        """The data as windows are prepared of it: layers by themselves know of no documents."""
        return self.data.model_copy(update={"packing": False}) if self.scope == "block" else self.data

    def apply(self, run: "Run") -> None:
        """Train, then write the codes of the best weights."""
        if self.scope == "block":
            from optcore.training.block_stage import train_blocks

            train_blocks(run, self)
            return
        from optcore.training.quantized_stage import train_quantized

        train_quantized(run, self)

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.scope != "lora" and self.lora != Lora():
            raise ValueError("`lora` does nothing without `scope: lora`")
        if self.lora.dropout:
            raise ValueError("an adapter that is merged before rounding has no input of its own: leave out dropout")
        if self.lora.base != "as_is":
            raise ValueError("what a quantized model trains is in high precision: leave out lora.base")
        return self
