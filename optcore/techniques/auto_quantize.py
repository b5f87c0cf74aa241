"""AutoQuantize: a number format for each layer, chosen so that the model changes least within a budget of bits."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from optcore.frozen import Frozen
from optcore.schemes import PRESETS, HIGH_PRECISION_bits, SchemeName
from optcore.tables import formats_of_tables
from optcore.techniques.ptq import Ptq, Quantizing, kind_of_fallback
from optcore.techniques.qad import Qad

if TYPE_CHECKING:
    from optcore.run import Run


class AutoQuantizeFallback(Frozen):
    """What to change when the gate fails."""

    effective_bits: float = Field(gt=0, le=HIGH_PRECISION_bits)


AnyAutoQuantizeFallback = Annotated[
    Annotated[AutoQuantizeFallback, Tag("change")] | Annotated[Qad, Tag("qad")], Discriminator(kind_of_fallback)
]


class AutoQuantize(Quantizing):
    """Choose a number format for each layer, the sensitive ones wider, then quantize.

    Every linear layer and candidate gets a score: the KL divergence that its rounding error will cause, predicted from
    the layer's inputs and the squared gradient of its outputs. What an engine fuses (q/k/v, gate/up) and all experts of
    a layer get one format. The choice with the least total score within the budget is found exactly.
    """

    title: ClassVar[str] = "Automatic mixed precision"
    paper: ClassVar[str] = "https://arxiv.org/abs/1911.03852"

    technique: Literal["auto_quantize"] = "auto_quantize"
    candidates: tuple[SchemeName | Literal["none"], ...] = Field(
        default=("nvfp4", "fp8_dynamic", "none"), min_length=2, max_length=8
    )
    """Formats to choose from; `none` leaves a layer in 16 bits."""
    effective_bits: float = Field(gt=0, le=HIGH_PRECISION_bits)
    """Most bits a weight, over all linear layers of the decoder: codes and scales, and 16 for a layer that is left
    alone. Embeddings and the head are not counted."""
    cost: Literal["weights", "active"] = "weights"
    """What the budget counts. `weights`: all that is stored. `active`: what a token reads, each expert by the share of
    the calibration tokens that were routed to it."""
    score_samples: int = Field(default=32, ge=1, le=4096)
    """Calibration windows that scores are measured on."""
    fallback: tuple[AnyAutoQuantizeFallback, ...] = Field(default=(), max_length=8)
    """Budgets to try in order when the gate fails; or `{technique: qad, ...}`, which trains what the last one left."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every format that linear layers may get."""
        return tuple(name for name in self.candidates if name != "none")

    @property
    def checkpoints(self) -> tuple[tuple[str, ...], ...]:
        """The formats that the result may hold."""
        return (tuple(dict.fromkeys((*self.schemes, *formats_of_tables(self.tables, self.schemes[0])))),)

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        formats = ", ".join(PRESETS[name].title if name in PRESETS else "16 bits" for name in self.candidates)
        kv_cache = f"; {self.kv_cache.upper()} KV cache" if self.kv_cache else ""
        return f"{self.effective_bits:g} bits a weight, mixed of {formats}{kv_cache}"

    @property
    def quantizing(self) -> Ptq:
        """The settings of the pass that writes the checkpoint; its scheme stands for what no choice was made about."""
        own = {"gate", "fallback"}
        shared: dict[str, Any] = {name: getattr(self, name) for name in Quantizing.model_fields if name not in own}
        return Ptq(scheme=self.schemes[0], **shared)

    @model_validator(mode="after")
    def _candidates_differ(self) -> Self:
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a candidate is named twice")
        return self

    def apply(self, run: "Run") -> None:
        """Measure, choose, quantize; the choice and its scores go into the stage's record."""
        from optcore.calibration.candidates import choose
        from optcore.calibration.quantize import quantize_checkpoint

        allocation = choose(run, self)
        run.results["allocation"] = allocation.model_dump(mode="json")
        run.metric("effective_bits", allocation.bits)
        run.metric("predicted_kl", allocation.predicted_kl)
        quantize_checkpoint(run, self.quantizing, allocation.assignment)
