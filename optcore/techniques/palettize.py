"""Weight clustering: every weight is one of a few values."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.techniques.patterns import Pattern
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class Palettize(Restructuring):
    """Replace the weights of the decoder's linear layers by indices into small tables of values, found by weighted
    k-means, streaming one layer at a time. Later layers are measured on what those before them give.

    The result is a plain checkpoint of the tables' values that any engine loads, as large as before, with the tables
    and indices beside it: the target `compact` stores those alone. `distill` after it trains the tables. The last entry
    of a chain, but for training.
    """

    title: ClassVar[str] = "Palettes"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.07629"
    leaves: ClassVar[frozenset[str]] = frozenset({"palettized"})

    technique: Literal["palettize"] = "palettize"
    bits: int = Field(default=4, ge=1, le=8)
    """Of an index: a table has 2^bits values."""
    method: Literal["kmeans", "uniform"] = "kmeans"
    """`kmeans`: the values with the least weighted squared error. `uniform`: equally far from each other, from the
    least weight to the largest."""
    sensitivity: Literal["inputs", "none"] = "inputs"
    """How much an error of a weight counts: by the mean square of its input on the calibration set, the diagonal of the
    Hessian of the layer's output error, or all the same, which needs no text."""
    group: int | None = Field(default=None, ge=1, le=2**20)
    """Output channels that share a table; one table for a whole matrix without it. Tables are stored in 16 bits."""
    embeddings: bool = False
    """Whether tables that tokens and positions are looked up in are done too, all their weights counting the same."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder to leave alone: exact module names, or regular expressions after `re:`."""

    @property
    def measures(self) -> bool:
        """Whether any choice depends on text."""
        return self.method == "kmeans" and self.sensitivity == "inputs"

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        each = f"{self.group} output channels" if self.group else "each matrix"
        how = {"kmeans": "k-means", "uniform": "equal steps"}[self.method]
        weighted = ", weighted by the inputs" if self.measures else ""
        return f"{2**self.bits} values for {each} by {how}{weighted}"

    @property
    def trivial(self) -> dict[str, object]:
        """As many values, equally far from each other."""
        return {"method": "uniform"}

    def apply(self, run: "Run") -> None:
        """Write the checkpoint of the tables' values, and the tables and indices."""
        from optcore.restructure.palettize import palettize_checkpoint

        palettize_checkpoint(run, self)
