"""Pruning: a model with less in it, chosen by what calibration text shows of each part."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class Prune(Restructuring):
    """Leave out the decoder layers that change the hidden states least. The result is a plain checkpoint with fewer
    layers that every engine loads; `distill` after it wins back what they knew.

    A layer's influence is 1 - the mean cosine between its input and its output (ShortGPT). Measure the loss in the
    report before you take more than a fifth: text goes on being fluent for longer than it goes on being right.
    """

    title: ClassVar[str] = "Pruning"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03853"

    technique: Literal["prune"] = "prune"
    depth: int = Field(ge=0, le=1000)
    """How many layers to leave out."""
    contiguous: bool = False
    """Leave out layers that follow each other: those over which the hidden states turn least
    (Gromov et al., arXiv:2403.17887)."""
    order: Literal["influence", "random"] = "influence"
    """`random` draws them by the recipe's seed: what a choice must beat."""
    ends: bool = False
    """Whether the first and the last layer may go too."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        chosen = "drawn at random" if self.order == "random" else "of least influence"
        return f"{self.depth} layer{'s' * (self.depth != 1)} {chosen} left out"

    @property
    def trivial(self) -> dict[str, object]:
        """As many layers, drawn at random."""
        return {"order": "random"} if self.depth else {}

    def apply(self, run: "Run") -> None:
        """Write the shallower checkpoint."""
        from optcore.restructure.depth import prune_depth

        prune_depth(run, self)
