"""Puzzle: each layer gets its own attention and feed-forward network out of a library, within one budget."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class Budget(Frozen):
    """Most that all decoder layers together may have; embeddings, the final norm and the head are not counted."""

    params: float | None = Field(default=None, gt=0)
    """Parameters: up to 1 a share of what the layers have, above that a number of them."""
    bytes: int | None = Field(default=None, gt=0)
    """Instead: bytes, in the types that the checkpoint is stored in."""

    @property
    def is_all(self) -> bool:
        """Whether every model is within it as it is."""
        return self.params == 1

    def of(self, total: int) -> int:
        """The budget in parameters or bytes, of layers that have `total` of them."""
        if self.bytes is not None:
            return self.bytes
        assert self.params is not None
        return int(self.params * total) if self.params <= 1 else int(self.params)

    def __str__(self) -> str:
        if self.bytes is not None:
            return f"{self.bytes} bytes"
        assert self.params is not None
        return f"{self.params:.0%} of their parameters" if self.params <= 1 else f"{self.params:.0f} parameters"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.params is None) == (self.bytes is None):
            raise ValueError("give one of `params` (a share, or a number) and `bytes`")
        return self


class Puzzle(Restructuring):
    """Find out what each layer's attention, and each part of its feed-forward network, is worth, and keep the most
    valuable within a budget. The choice of least total score is found exactly (a multiple-choice knapsack).

    Scores are of one part replaced in the whole model, and are taken to add up. No plain engine has a size for each
    layer: where they differ, what goes is zeros in matrices of full shape, and `puzzle.json` says so. Layers that lose
    everything are left out, and where all that are left lose equally much, the checkpoint is really narrower.
    """

    title: ClassVar[str] = "Puzzle"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.19146"
    leaves: ClassVar[frozenset[str]] = frozenset({"sparse"})

    technique: Literal["puzzle"] = "puzzle"
    target: Budget
    """The budget."""
    ffn: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0), min_length=1, max_length=33
    )
    """Shares of its FFN channels that a layer may keep, of each expert's where there are experts. Channels are ranked
    by how large they are on the text times the norm of the column that reads them; a smaller network is part of every
    larger one. Coarse shares leave part of the budget unspent."""
    attention: bool = True
    """Whether layers may lose their attention."""
    choice: Literal["ilp", "uniform"] = "ilp"
    """`uniform`: the same share of the FFN channels in every layer, attention as long as that is enough: what a choice
    must beat."""
    score: Literal["kl", "local"] = "kl"
    """What a variant costs. `kl`: KL divergence of the model's predictions when this one is in it; every layer after
    it is run once more for it, so the work grows with the square of the depth. `local`: relative squared error of the
    layer's output."""
    score_samples: int = Field(default=32, ge=1, le=4096)
    """Calibration windows that scores are measured on. With `kl`, their hidden states are held once for every
    variant."""
    refit: bool = True
    """Solve for the weights that read the channels which are left, so that the network's output changes least on the
    calibration set (least squares)."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Of `refit`: added to the diagonal of the inputs' second moments, as a share of its mean."""
    multiple: int = Field(default=8, ge=1, le=4096)
    """FFN sizes are multiples of it: matrix units and quantization groups are."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        how = "equally in all layers" if self.choice == "uniform" else f"layer by layer, by {self.score} scores"
        return f"layers cut to {self.target}, {how}"

    @property
    def trivial(self) -> dict[str, object]:
        """The same budget, spent equally."""
        return {} if self.target.is_all else {"choice": "uniform"}

    @model_validator(mode="after")
    def _all_may_stay(self) -> Self:
        if 1 not in self.ffn or len(set(self.ffn)) < len(self.ffn):
            raise ValueError("`ffn` lists different shares, and 1 among them: a layer may keep all of its network")
        if len(self.ffn) == 1 and not self.attention:
            raise ValueError("nothing may go: list smaller shares in `ffn`, or let `attention` go")
        return self

    def apply(self, run: "Run") -> None:
        """Write the checkpoint, and `puzzle.json`."""
        from optcore.restructure.puzzle import puzzle_checkpoint

        puzzle_checkpoint(run, self)
