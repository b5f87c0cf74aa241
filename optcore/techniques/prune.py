"""Pruning: a model with less in it, chosen by what calibration text shows of each part."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.techniques.restructuring import Restructuring
from optcore.techniques.target import Search, Target

if TYPE_CHECKING:
    from optcore.run import Run

_AXES = ("ffn", "heads", "hidden")
_LISTED = ", ".join(_AXES)
_CALLED = {"ffn": "FFN channels", "heads": "query heads", "hidden": "hidden channels"}


class Cut(Frozen):
    """How much of one axis goes: the share of it, or what stays."""

    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share that is taken away."""
    size: int | None = Field(default=None, ge=1)
    """Instead of `ratio`: how many stay."""

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves every model as it is."""
        return self.ratio == 0

    def __str__(self) -> str:
        return f"to {self.size}" if self.ratio is None else f"by {self.ratio:.0%}"

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.ratio is None) == (self.size is None):
            raise ValueError("give one of `ratio` (the share taken away) and `size` (what stays)")
        return self


class Prune(Restructuring):
    """Leave out the parts of a model that calibration text needs least: whole layers, channels of the feed-forward
    networks, query heads, channels of the hidden state, experts. The result is a plain, smaller checkpoint that every
    engine loads; `distill` after it wins back what they knew.

    A layer's influence is 1 - the mean cosine between its input and its output (ShortGPT); channels and heads are
    ranked by how large they are on the text (Minitron, arXiv:2407.14679); experts by the mean of gate times norm of
    output over the tokens that reach them (REAP, arXiv:2510.13999). Up to about 8 billion parameters width costs
    less than depth; heads are best left. Measure the loss in the report before you take more than a fifth: text goes
    on being fluent for longer than it goes on being right.
    """

    title: ClassVar[str] = "Pruning"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.03853"

    technique: Literal["prune"] = "prune"
    depth: int = Field(default=0, ge=0, le=1000)
    """How many layers to leave out."""
    width: float | None = Field(default=None, ge=0, lt=1)
    """Share of the FFN channels and of the hidden size that goes: `ffn` and `hidden` in one word."""
    ffn: Cut | None = None
    """Channels between a feed-forward network's projections; of each expert, where there are experts."""
    heads: Cut | None = None
    """Query heads. Where several share a key, as many of each group, and keys and values stay; where each has its own,
    these go with it."""
    hidden: Cut | None = None
    """Channels of the hidden state, the same ones in all layers."""
    experts: Cut | None = None
    """Experts of each layer of a mixture, as many from each group of a router that chooses groups first; shared ones
    stay. In an entry of its own."""
    masked: bool = False
    """Make zeros of what belongs to the removed heads instead of taking it out: for encoders such as BERT, whose
    configuration has no size of a head beside their number. Loads everywhere, faster nowhere; training keeps zeros."""
    target: Target | None = None
    """Instead of cuts: what the model may cost. Shapes that meet it are searched over a grid and compared; what is
    written is the best one as cut, not distilled: a `distill` after it starts from there."""
    search: Search = Search()
    """With `target`: how that is searched."""
    multiple: int = Field(default=8, ge=1, le=4096)
    """Sizes of `ffn` and `hidden` given by a ratio are multiples of it: matrix units and quantization groups are."""
    contiguous: bool = False
    """Leave out layers that follow each other: those over which the hidden states turn least
    (Gromov et al., arXiv:2403.17887)."""
    order: Literal["influence", "divergence", "random"] = "influence"
    """What ranks layers. `influence`: how far they turn the hidden states; `divergence`: the KL of the model without
    them, which says more and takes work that grows with the square of the depth. `random` draws on every axis by the
    recipe's seed: what a choice must beat."""
    ends: bool = False
    """Whether the first and the last layer may go too."""
    importance: Literal["activation", "activation_norm", "magnitude"] = "activation_norm"
    """What ranks FFN channels. `activation`: how large they are on the text; `activation_norm`: that times the norm of
    the column that reads them; `magnitude`: that norm alone, which needs no text and is no rival to them."""
    rescale: bool = True
    """With `hidden`: correct the norms' gains for the mean square of fewer channels, as measured."""
    compensate: bool = False
    """Add what the removed FFN channels and heads gave in the mean to the bias after them (FLAP, arXiv:2312.11983).
    Only for models that have one."""

    @property
    def thins(self) -> bool:
        """Whether any expert goes."""
        return bool(self.experts and not self.experts.is_nothing)

    @property
    def cuts(self) -> dict[str, Cut]:
        """What is cut, by axis; `width` spelled out."""
        wide = None if self.width is None else Cut(ratio=self.width)
        named = {"ffn": self.ffn or wide, "hidden": self.hidden or wide, "heads": self.heads}
        return {axis: cut for axis, cut in named.items() if cut and not cut.is_nothing}

    @property
    def sliced(self) -> dict[str, Cut]:
        """What is cut out of tensors: all but heads of which zeros are made."""
        return {axis: cut for axis, cut in self.cuts.items() if not (self.masked and axis == "heads")}

    @property
    def keeps_states(self) -> bool:
        """Whether all layers stay, and no channel of the hidden state goes."""
        return not (self.depth or self.target or "hidden" in self.cuts)

    @property
    def makes(self) -> frozenset[str]:
        """Zeros are a form that weights have, and not all techniques keep it."""
        return frozenset({"sparse"} if self.cuts.keys() - self.sliced.keys() else ())

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        if self.target:
            chosen = "drawn at random" if self.order == "random" else "chosen by a search"
            return f"pruned to {self.target}, {chosen}"
        layers = f"{self.depth} layer{'s' * (self.depth != 1)}"
        chosen = "drawn at random" if self.order == "random" else f"of least {self.order}"
        parts = [f"{layers} {chosen} left out"] if self.depth or not (self.cuts or self.experts) else []
        if self.cuts:
            how = {axis: "cut" if axis in self.sliced else "made zeros," for axis in self.cuts}
            said = ", ".join(f"{_CALLED[axis]} {how[axis]} {cut}" for axis, cut in self.cuts.items())
            parts.append(f"{said}{' at random' if self.order == 'random' else ''}")
        if self.experts:
            parts.append(f"experts cut {self.experts}{' at random' if self.order == 'random' else ' by saliency'}")
        return "; ".join(parts)

    @property
    def trivial(self) -> dict[str, object]:
        """As much of each axis, drawn at random. For a target: the same one, met by parts drawn at random in the shape
        that is best as cut, since to distill what was drawn at random would cost as much again as the search."""
        if self.target and self.order != "random":
            return {"order": "random", "search": self.search.model_copy(update={"steps": 0})}
        return {"order": "random"} if self.depth or self.cuts or self.thins else {}

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        cuts = self.depth or self.width or self.cuts or self.experts
        if not (self.target or self.model_fields_set & {"depth", "width", "experts", *_AXES}):
            raise ValueError(f"nothing to prune: give `target`, `depth`, `width`, `experts`, or one of {_LISTED}")
        if self.target and cuts:
            raise ValueError("`target` finds out what is cut: leave out `depth`, `width`, `experts` and the axes")
        if self.search != Search() and not self.target:
            raise ValueError("`search` does nothing without `target`")
        if self.experts and (self.depth or self.cuts):
            raise ValueError("`experts` goes alone: prune what else there is in another entry of the chain")
        if self.width is not None and (self.ffn or self.hidden):
            raise ValueError("`width` says how much of `ffn` and `hidden` goes: give it or them")
        if self.masked and not self.heads:
            raise ValueError("`masked` makes zeros of heads, and none are cut")
        if self.compensate and not self.target and not (self.cuts.keys() & {"ffn", "heads"}):
            raise ValueError("`compensate` makes up for FFN channels and heads, and none are cut")
        return self

    def apply(self, run: "Run") -> None:
        """Write the smaller checkpoint."""
        if self.target:
            from optcore.restructure.search import prune_to_target

            prune_to_target(run, self, self.target)
        else:
            from optcore.restructure.prune import prune_checkpoint

            prune_checkpoint(run, self)
