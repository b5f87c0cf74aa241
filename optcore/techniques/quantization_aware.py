"""What QAT and QAD share: they go on from a quantized checkpoint, and leave one in the same formats."""

from typing import ClassVar, Literal

from pydantic import Field

from optcore.techniques.training import Training


class QuantizationAware(Training):
    """Train through the rounding of a quantized model: what is exported is what was trained."""

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})

    scope: Literal["full", "scales"] = "full"
    """What moves. `full`: the weights of all quantized layers. `scales`: their scales only, the codes follow."""
    norms: bool = False
    """Train norms and biases of the decoder layers too."""
    scales: Literal["auto", "freeze", "recompute"] = "auto"
    """What scales of weights do while weights move. `recompute`: the maximum at every step. `freeze`: they stay.
    `auto`: recomputed where they were plain maxima, frozen where they were searched."""
    skip_below: float = Field(default=1e-3, ge=0)
    """Nats a token. Where the quantized model's divergence from its teacher is below this, there is nothing to win, and
    nothing is trained."""
