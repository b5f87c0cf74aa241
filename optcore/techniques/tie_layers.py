"""Weight sharing across layers: neighbours compute with the same matrices."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run

Layer = Annotated[int, Field(ge=0, lt=1000)]


class TieLayers(Restructuring):
    """Let decoder layers share their matrices with their neighbours; each keeps its norms and biases. Those go together
    over which hidden states turn least.

    The result is a plain checkpoint in which each layer has its copy: as large as before, and as slow; the target
    `compact` stores what is shared once. `distill` after it trains the shared matrices as one. Compare it with `prune`
    and `depth`, which saves as many bytes and time too. The last entry of a chain, but for training.
    """

    title: ClassVar[str] = "Tied layers"
    paper: ClassVar[str] = "https://arxiv.org/abs/2402.14905"
    leaves: ClassVar[frozenset[str]] = frozenset({"tied"})

    technique: Literal["tie_layers"] = "tie_layers"
    ties: int = Field(default=0, ge=0, le=1000)
    """How many layers get the matrices of the one before them; ties that touch make a run of more than two."""
    runs: tuple[tuple[Layer, Layer], ...] = Field(default=(), max_length=500)
    """Instead of `ties`: the first and the last layer of each run, counted from 0."""
    value: Literal["mean", "first"] = "mean"
    """What a run computes with: the mean of its layers, or its first layer."""
    order: Literal["influence", "random"] = "influence"
    """`random` draws as many ties by the recipe's seed, whatever `runs` says: what a choice must beat."""
    ends: bool = False
    """Whether the first and the last layer may be tied too."""

    @property
    def count(self) -> int:
        """Of ties."""
        return self.ties or sum(last - first for first, last in self.runs)

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        chosen = {"influence": "where hidden states turn least", "random": "at random"}[self.order]
        if self.runs and self.order != "random":
            chosen = ", ".join(f"{first} to {last}" for first, last in self.runs)
        tied = "layer tied to the one before it" if self.count == 1 else "layers tied to those before them"
        return f"{self.count} {tied} ({chosen}), {self.value} of their matrices"

    @property
    def trivial(self) -> dict[str, object]:
        """As many ties at random."""
        return {"order": "random"} if self.count else {}

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if (self.ties and self.runs) or not self.model_fields_set & {"ties", "runs"}:
            raise ValueError("give one of `ties` (how many layers) and `runs` (which ones)")
        if any(first >= last for first, last in self.runs):
            raise ValueError("a run goes from one layer to a later one")
        if any(before[1] >= after[0] for before, after in zip(self.runs, self.runs[1:], strict=False)):
            raise ValueError("`runs` are in the order of the layers, and none touches the next")
        return self

    def apply(self, run: "Run") -> None:
        """Write the checkpoint with equal matrices, and which are."""
        from optcore.restructure.tie_layers import tie_checkpoint

        tie_checkpoint(run, self)
