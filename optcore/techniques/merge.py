"""Merging: the weights of several models of one architecture, made into one model without data."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optcore.frozen import Frozen
from optcore.references import ModelRef
from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]

_DELTAS = frozenset({"weights", "scale", "normalize"})
_READS: dict[Method, frozenset[str]] = {
    "linear": frozenset({"weight", "weights", "normalize"}),
    "slerp": frozenset({"t"}),
    "task_arithmetic": _DELTAS,
    "ties": _DELTAS | {"density"},
    "dare_linear": _DELTAS | {"density"},
    "dare_ties": _DELTAS | {"density"},
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


class Merge(Restructuring):
    """Merge the model that the chain has made so far with others of the same architecture and tokenizer.

    `linear` averages weights, `slerp` goes along the arc to one other model. The others add to the chain's model, as
    their base, what they learned beyond it: all of it (`task_arithmetic`), the largest part where most agree on the
    sign (`ties`), or a random part made larger (`dare_linear`, `dare_ties`; arXiv:2311.03099). It takes no data.
    """

    title: ClassVar[str] = "Merging"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    needs: ClassVar[frozenset[str]] = frozenset({"dense", "unrotated"})

    technique: Literal["merge"] = "merge"
    method: Method = "linear"
    others: tuple[Merged, ...] = Field(min_length=1, max_length=16)
    """The models to merge with the chain's."""
    weight: float = Field(default=1.0, ge=-100, le=100)
    """How much the chain's own model counts; for `linear` only."""
    t: float = Field(default=0.5, ge=0, le=1)
    """Where on the arc, for `slerp`: 0 is the chain's model, 1 the other."""
    scale: float = Field(default=1.0, ge=-100, le=100)
    """What the merged differences are multiplied with before the base is added (lambda)."""
    normalize: bool | None = None
    """Divide by the sum of weights (of those that agree, for `ties` and `dare_ties`). By default `linear`, `ties` and
    `dare_ties` do."""

    @property
    def divides(self) -> bool:
        """Whether the sum of weights is divided by."""
        return self.method in ("linear", "ties", "dare_ties") if self.normalize is None else self.normalize

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        return f"merged with {len(self.others)} other model{'s' * (len(self.others) > 1)} ({self.method})"

    @property
    def models(self) -> dict[str, ModelRef]:
        """The models to merge with the chain's, by the field that names them."""
        return {f"others/{number}/model": other.model for number, other in enumerate(self.others)}

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.method == "slerp" and len(self.others) != 1:
            raise ValueError("`slerp` goes from the chain's model to one other; name exactly one in `others`")
        if unread := sorted(self._changed - _READS[self.method]):
            raise ValueError(f"`{self.method}` does not look at `{unread[0]}`: leave it out, or choose another method")
        own = (self.weight,) if self.method == "linear" else ()
        if self.divides and self.method != "slerp" and abs(sum((*own, *(each.weight for each in self.others)))) < 1e-8:
            raise ValueError(
                "the weights sum to zero, and they are divided by their sum: give others, or normalize: false"
            )
        return self

    @property
    def _changed(self) -> set[str]:
        """Settings that are not their defaults."""
        fields = ("weight", "t", "scale", "normalize")
        own = {name for name in fields if getattr(self, name) != type(self).model_fields[name].default}
        weights = {"weights"} if any(each.weight != 1 for each in self.others) else set()
        density = {"density"} if any(each.density != 0.5 for each in self.others) else set()
        return own | weights | density

    @property
    def trivial(self) -> dict[str, object]:
        """The plain mean of the same models."""
        others = tuple(Merged(model=each.model) for each in self.others)
        return {"method": "linear", "others": others, "weight": 1.0, "t": 0.5, "scale": 1.0, "normalize": None}

    def apply(self, run: "Run") -> None:
        """Write the merged checkpoint."""
        from optcore.restructure.merge import merge_checkpoints

        merge_checkpoints(run, self)
