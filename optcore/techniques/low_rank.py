"""Low rank: linear layers as products of two thin matrices."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.techniques.patterns import Pattern
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class LowRank(Restructuring):
    """Replace the weights of the decoder's linear layers by products of two thin matrices (SVD-LLM).

    The result is a plain checkpoint that any engine loads, with the products in it, and the factors beside it in
    `factors.safetensors`: only they are smaller, and no serving engine runs them. Training after it trains them.
    """

    title: ClassVar[str] = "Low rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.07378"
    leaves: ClassVar[frozenset[str]] = frozenset({"factored"})

    technique: Literal["low_rank"] = "low_rank"
    method: Literal["svd", "whitened"] = "whitened"
    """`svd` changes the weights least and needs no text; `whitened` changes the layers' outputs on the calibration set
    least."""
    keep: float = Field(default=0.8, gt=0, le=1)
    """Share of the parameters of these linear layers that the factors have. A layer whose factors would not be smaller
    stays whole."""
    allocation: Literal["uniform", "global"] = "uniform"
    """`uniform`: the same share of each layer. `global`: the components of all layers compete, by the share of their
    layer's output energy per parameter; needs one more pass over the model. Which is better depends on the model:
    energies do not say how much a layer matters. Measure both."""
    multiple: int = Field(default=8, ge=1, le=4096)
    """Ranks are multiples of it: 16 bytes of a half-precision row are what matrix units read at once."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Modules to leave alone: exact names, or a regular expression after `re:`."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        kind = "plain" if self.method == "svd" else "whitened"
        return f"{kind} SVD of linear layers to {self.keep:.0%} of their parameters, {self.allocation} ranks"

    @property
    def trivial(self) -> dict[str, object]:
        """As many parameters, by the plain SVD of each layer."""
        return {"method": "svd", "allocation": "uniform"}

    def apply(self, run: "Run") -> None:
        """Write the checkpoint of the products, and the factors."""
        from optcore.restructure.low_rank import factorize_checkpoint

        factorize_checkpoint(run, self)
