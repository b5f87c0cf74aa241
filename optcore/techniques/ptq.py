"""Post-training quantization: a number format for the linear layers, measured on text, in one pass over the model."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from optcore.frozen import Frozen
from optcore.mixes import FormatName, formats_in, title_of
from optcore.references import ModelRef, NeededText
from optcore.schemes import KvCacheName, SchemeName
from optcore.tables import TableSetting, formats_of_tables
from optcore.techniques.base import Gate, Technique
from optcore.techniques.options import Gptq
from optcore.techniques.patterns import Pattern
from optcore.techniques.qad import Qad

if TYPE_CHECKING:
    from optcore.run import Run


class PtqFallback(Frozen):
    """What to change when the gate fails."""

    scheme: FormatName


def kind_of_fallback(entry: Any) -> str:
    """`qad` for training, which goes on from the result that failed the gate; `change` for another configuration."""
    is_training = "technique" in entry if isinstance(entry, dict) else isinstance(entry, Qad)
    return "qad" if is_training else "change"


AnyPtqFallback = Annotated[
    Annotated[PtqFallback, Tag("change")] | Annotated[Qad, Tag("qad")], Discriminator(kind_of_fallback)
]


class Override(Frozen):
    """Another number format for some of the linear layers."""

    modules: Pattern
    """An exact module name, or a regular expression after `re:`. The first entry that matches holds."""
    scheme: SchemeName | None
    """The format; null leaves them in high precision."""


class Quantizing(Technique):
    """What every technique that quantizes after training can be told."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"quantized"})
    removes: ClassVar[frozenset[str]] = frozenset({"dense"})
    how_to_keep: ClassVar[dict[str, str]] = {"sparse": "use `rounding: nearest`, without `qad` in `fallback`"}

    rounding: Literal["nearest", "gptq"] = "gptq"
    """`nearest`: each weight to the nearest value of the format. `gptq`: with error feedback measured on the text."""
    gptq: Gptq = Gptq()
    """Settings of `rounding: gptq`."""
    scale_search: Literal["max", "percentile", "mse", "hessian"] = "mse"
    """How weight scales are found. `max`: from the largest magnitude. `percentile`: from the 99.99th percentile. `mse`:
    least squared rounding error. `hessian`: the same, each input channel weighted by its mean square on the text."""
    smoothing: Literal["none", "smoothquant", "awq"] = "awq"
    """Channel scales moved from a layer's input into its weights, and folded into the norm or layer before it.
    `smoothquant`: from magnitudes, by `smoothing_alpha`. `awq`: searched for the least error of the layer's output,
    and used only where it helps."""
    smoothing_alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """SmoothQuant's migration strength: 0 leaves outliers in the input, 1 moves them into the weights. `auto` searches
    for the least error."""
    propagate: Literal["original", "quantized"] = "quantized"
    """What later layers are measured on: the original model's hidden states (one forward of each layer), or those of
    the layers quantized so far (a second one; with an asymmetric target, the default of `gptq`, also a part of the
    layer for each of its groups, in both models)."""
    activation_search: bool = False
    """Choose NVFP4 and MX activation scales by least squared error instead of the maximum. Only an engine that does so
    at run time computes the figures of the report."""
    kv_cache: KvCacheName | None = None
    """Number format of the KV cache; static scales are measured on the calibration text."""
    kv_rotate: bool = False
    """Rotate queries and keys by a Hadamard matrix before keys are rounded, for the 4-bit formats."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder to leave alone: exact module names, or regular expressions after `re:`.
    Expert routers are always left; embeddings and the head are `tables`."""
    tables: TableSetting = "auto"
    """What becomes of the embeddings and the head. `auto`: block formats of GGUF and mixes of them do as llama.cpp does
    (six bits for the head, or for both where they share their values; the base format for the embeddings), all other
    formats leave them alone. `keep`: left alone. A block format of GGUF: that one for both."""
    fallback: tuple[Frozen, ...] = Field(default=(), max_length=8)
    """Changes to try in order when the gate fails."""

    @property
    def keeps(self) -> frozenset[str]:
        """Zeros, where each weight is rounded by itself: every format has a zero, and no scale moves one, a channel's
        neither. Error feedback would fill them."""
        return frozenset({"sparse"}) if self.rounding == "nearest" else frozenset()

    @property
    def alternatives(self) -> tuple[Technique, ...]:
        """One technique for each fallback; the gate stays, and stops the run when the last one fails it too."""
        if self.gate is None:
            return ()
        gates = [self.gate] * (len(self.fallback) - 1) + [self.gate.model_copy(update={"on_fail": "stop"})]
        return tuple(map(self._instead, range(len(self.fallback)), gates))

    def _instead(self, place: int, gate: Gate) -> Technique:
        """What is done when the gate fails: another configuration of this technique, or training what it left."""
        choice = self.fallback[place]
        if isinstance(choice, Qad):
            return choice.model_copy(update={"gate": gate})
        left = self.fallback[place + 1 :]
        return self.model_copy(update={**dict(choice), "gate": gate, "fallback": left})

    @property
    def models(self) -> dict[str, ModelRef]:
        """What training in `fallback` needs."""
        return {f"fallback/{n}/{name}": ref for n, one in self._trainings() for name, ref in one.models.items()}

    @property
    def texts(self) -> dict[str, NeededText]:
        """What training in `fallback` needs."""
        return {f"fallback/{n}/{name}": text for n, one in self._trainings() for name, text in one.texts.items()}

    def _trainings(self) -> list[tuple[int, Qad]]:
        return [(place, choice) for place, choice in enumerate(self.fallback) if isinstance(choice, Qad)]

    @property
    def feedback(self) -> Gptq:
        """The settings of GPTQ with nothing left open."""
        asymmetry = self.gptq.asymmetry
        if asymmetry is None:
            asymmetry = 0.5 if self.propagate == "quantized" and self.rounding == "gptq" else 0.0
        return self.gptq.model_copy(update={"asymmetry": asymmetry})

    @property
    def measures_gram(self) -> bool:
        """Whether any choice depends on second moments of the inputs."""
        return self.rounding == "gptq" or self.scale_search == "hessian" or self.smoothing != "none"

    @property
    def is_searched(self) -> bool:
        """Whether it does more than plain maximum scales and rounding to nearest."""
        return self.rounding != "nearest" or self.scale_search != "max" or self.smoothing != "none"

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.gptq.asymmetry and self.propagate != "quantized":
            raise ValueError("gptq.asymmetry needs `propagate: quantized`: both models' inputs are compared")
        if self.kv_rotate and self.kv_cache is None:
            raise ValueError("kv_rotate does nothing without `kv_cache`; name a format, such as int4")
        return self


class Ptq(Quantizing):
    """Quantize the linear layers of the decoder, streaming one layer at a time."""

    title: ClassVar[str] = "Post-training quantization"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"

    technique: Literal["ptq"] = "ptq"
    scheme: FormatName
    """Number format of weights and activations; or one of llama.cpp's mixes, such as `q4_k_m`."""
    also: tuple[FormatName, ...] = Field(default=(), max_length=16)
    """More formats from the same pass, each a checkpoint of its own. They share one measurement of the original
    model, so they need `propagate: original`."""
    overrides: tuple[Override, ...] = Field(default=(), max_length=256)
    """Mixed precision by hand: other formats for some layers."""
    fallback: tuple[AnyPtqFallback, ...] = Field(default=(), max_length=8)
    """Formats to try in order when the gate fails; or `{technique: qad, ...}`, which trains what the last one left."""

    @property
    def checkpoints(self) -> tuple[tuple[str, ...], ...]:
        """The formats that each checkpoint may hold, the main one first; in each, that of most of its weights first."""
        chosen = tuple(name for override in self.overrides if override.scheme for name in formats_in(override.scheme))
        return tuple(
            tuple(dict.fromkeys((*formats_in(name), *chosen, *formats_of_tables(self.tables, name))))
            for name in (self.scheme, *self.also)
        )

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every format that a result may hold."""
        return tuple(dict.fromkeys(name for formats in self.checkpoints for name in formats))

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        mixed = ", mixed precision" if self.overrides else ""
        kv_cache = f"; {self.kv_cache.upper()} KV cache" if self.kv_cache else ""
        return f"{title_of(self.scheme)}{mixed}{kv_cache}"

    @model_validator(mode="after")
    def _formats_agree(self) -> Self:
        if self.also and self.propagate != "original":
            raise ValueError("`also` shares one measurement among formats; set `propagate: original`")
        if self.scheme in self.also or len(set(self.also)) < len(self.also):
            raise ValueError("a format is named twice in `scheme` and `also`")
        if any(isinstance(choice, PtqFallback) and choice.scheme in self.also for choice in self.fallback):
            raise ValueError("a format of `fallback` is in `also` too, and would be made twice")
        return self

    def apply(self, run: "Run") -> None:
        """Write the checkpoint with its codes and scales beside the dense weights."""
        from optcore.calibration.quantize import quantize_checkpoint

        quantize_checkpoint(run, self)
