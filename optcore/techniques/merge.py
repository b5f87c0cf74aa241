"""Merging: the weights of several models of one architecture, or their layers, made into one model."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.references import ModelRef
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough"]

_DELTAS = frozenset({"weights", "scale", "normalize", "sweep"})
_READS: dict[Method, frozenset[str]] = {
    "linear": frozenset({"weight", "weights", "normalize", "sweep"}),
    "slerp": frozenset({"t", "sweep"}),
    "task_arithmetic": _DELTAS,
    "ties": _DELTAS | {"density"},
    "dare_linear": _DELTAS | {"density"},
    "dare_ties": _DELTAS | {"density"},
    "passthrough": frozenset({"slices"}),
}
"""Settings that each method looks at."""


class Merged(Frozen):
    """A model that is merged with the chain's."""

    model: ModelRef
    """Of the same architecture, with the same tokenizer."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """How much it counts; not for `slerp`."""
    density: float = Field(default=0.5, gt=0, le=1)
    """Share of its differences to the base that is kept: the largest (`ties`), or random ones (`dare_*`)."""


class Slice(Frozen):
    """Consecutive decoder layers of one of the models."""

    model: int = Field(default=0, ge=0, le=16)
    """Whose: 0 is the chain's model, n the n-th of `others`."""
    layers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    """The first layer, and the one before which it ends, counted from 0."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.layers[0] >= self.layers[1]:
            raise ValueError(f"layers from {self.layers[0]} to before {self.layers[1]} are none")
        return self


class Merge(Restructuring):
    """Merge the model that the chain has made so far with others of the same architecture and tokenizer.

    `linear` averages weights, `slerp` goes along the arc to one other model. The others add to the chain's model, as
    their base, what they learned beyond it: all of it (`task_arithmetic`), the largest part where most agree on the
    sign (`ties`), or a random part made larger (`dare_linear`, `dare_ties`; arXiv:2311.03099). None of them takes data,
    unless `sweep` measures how much of the others is best.

    `passthrough` stacks whole layers instead, of one model (depth upscaling, arXiv:2312.15166) or of several: train the
    result, for nothing has taught its layers to follow each other.
    """

    title: ClassVar[str] = "Merging"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    needs: ClassVar[frozenset[str]] = frozenset({"dense", "unrotated"})

    technique: Literal["merge"] = "merge"
    method: Method = "linear"
    others: tuple[Merged, ...] = Field(default=(), max_length=16)
    """The models to merge with the chain's; `passthrough` needs none."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """How much the chain's own model counts; for `linear` only."""
    t: float = Field(default=0.5, ge=0, le=1)
    """Where on the arc, for `slerp`: 0 is the chain's model, 1 the other."""
    scale: float = Field(default=1.0, ge=-100, le=100)
    """What the merged differences are multiplied with before the base is added (lambda)."""
    normalize: bool | None = None
    """Divide by the sum of weights (of those that agree, for `ties` and `dare_ties`). By default `linear`, `ties` and
    `dare_ties` do."""
    slices: tuple[Slice, ...] = Field(default=(), max_length=256)
    """What `passthrough` stacks, from the first layer to the last. Embeddings and head are the chain's model's."""
    sweep: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(default=(), max_length=32)
    """Shares of the others to try: `t` of `slerp`, `scale` of differences, and for `linear` what the others' weights
    are multiplied with. The one under which calibration text is likeliest is kept; none, the chain's own model, is
    always among them, so that a sweep leaves nothing worse on that text. It costs a merge and a measurement each."""

    @property
    def divides(self) -> bool:
        """Whether the sum of weights is divided by."""
        return self.method in ("linear", "ties", "dare_ties") if self.normalize is None else self.normalize

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        if self.method == "passthrough":
            return f"{sum(stop - start for start, stop in self._ranges)} layers stacked from {len(self.slices)} slices"
        chosen = f", best of {len(self.sweep) + 1}" if self.sweep else ""
        return f"merged with {len(self.others)} other model{'s' * (len(self.others) > 1)} ({self.method}{chosen})"

    @property
    def models(self) -> dict[str, ModelRef]:
        """The models to merge with the chain's, by the field that names them."""
        return {f"others/{number}/model": other.model for number, other in enumerate(self.others)}

    @property
    def swept(self) -> Literal["t", "scale", "share"]:
        """What the values of `sweep` are values of."""
        return "t" if self.method == "slerp" else "share" if self.method == "linear" else "scale"

    def at(self, value: float) -> Self:
        """The merge at one value of the sweep."""
        changes: dict[str, object] = {self.swept: value}
        if self.method == "linear":
            others = tuple(each.model_copy(update={"weight": value * each.weight}) for each in self.others)
            changes = {"others": others}
        return self.model_copy(update={**changes, "sweep": ()})

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if unread := sorted(self._changed - _READS[self.method]):
            raise ValueError(f"`{self.method}` does not look at `{unread[0]}`: leave it out, or choose another method")
        if self.method == "passthrough":
            self._check_slices()
        elif not self.others:
            raise ValueError(f"`{self.method}` merges the chain's model with others: name at least 1 item in `others`")
        elif self.method == "slerp":
            if len(self.others) != 1:
                raise ValueError("`slerp` goes from the chain's model to one other; name exactly one in `others`")
        else:
            for merge in (self, *map(self.at, self.sweep)):
                merge._check_sum()
        self._check_sweep()
        return self

    def _check_slices(self) -> None:
        taken = {part.model for part in self.slices}
        if not taken:
            raise ValueError("`passthrough` stacks layers: name at least one slice in `slices`")
        if strange := max(taken - {*range(len(self.others) + 1)}, default=None):
            raise ValueError(f"a slice is of model {strange}, and `others` names {len(self.others)}")
        if unused := {*range(1, len(self.others) + 1)} - taken:
            raise ValueError(f"no slice is of model {min(unused)}: leave it out of `others`")

    def _check_sum(self) -> None:
        own = (self.weight,) if self.method == "linear" else ()
        if self.divides and abs(sum((*own, *(each.weight for each in self.others)))) < 1e-8:
            raise ValueError(
                "the weights sum to zero, and they are divided by their sum: give others, or normalize: false"
            )

    def _check_sweep(self) -> None:
        if self.sweep and self.swept in self._changed:
            raise ValueError(f"`sweep` chooses `{self.swept}`: leave one of them out")
        if self.method == "slerp" and max(self.sweep, default=0) > 1:
            raise ValueError("`slerp` ends at 1, the other model: `sweep` takes no larger value")
        if self.method == "linear" and self.sweep and not self.weight:
            raise ValueError("`sweep` weighs the others against the chain's model, whose `weight` is 0")

    @property
    def _ranges(self) -> tuple[tuple[int, int], ...]:
        return tuple(part.layers for part in self.slices)

    @property
    def _changed(self) -> set[str]:
        """Settings that are not their defaults."""
        fields = ("weight", "t", "scale", "normalize", "slices", "sweep")
        own = {name for name in fields if getattr(self, name) != type(self).model_fields[name].default}
        weights = {"weights"} if any(each.weight != 1 for each in self.others) else set()
        density = {"density"} if any(each.density != 0.5 for each in self.others) else set()
        return own | weights | density

    @property
    def trivial(self) -> dict[str, object]:
        """The plain mean of the same models; of a stack, the same layers of the chain's model alone."""
        if self.method == "passthrough":
            return {"slices": tuple(Slice(layers=layers) for layers in self._ranges), "others": ()}
        others = tuple(Merged(model=each.model) for each in self.others)
        plain = {"weight": 1.0, "t": 0.5, "scale": 1.0, "normalize": None, "sweep": ()}
        return {"method": "linear", "others": others, **plain}

    def apply(self, run: "Run") -> None:
        """Write the merged checkpoint."""
        if self.method == "passthrough":
            from optcore.restructure.passthrough import pass_layers

            pass_layers(run, self)
        else:
            from optcore.restructure.merge import merge_checkpoints

            merge_checkpoints(run, self)
