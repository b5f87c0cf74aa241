"""Post-training quantization: a number format for the linear layers, scales measured on text."""

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints

from optcore.frozen import Frozen
from optcore.schemes import PRESETS, KvCacheName, Scheme, SchemeName
from optcore.techniques.base import Technique

if TYPE_CHECKING:
    from optcore.run import Run


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_compiles)]


class PtqFallback(Frozen):
    """What to change when the gate fails."""

    scheme: SchemeName


class Ptq(Technique):
    """Quantize the linear layers of the decoder, streaming one layer at a time."""

    title: ClassVar[str] = "Post-training quantization"
    paper: ClassVar[str] = "https://arxiv.org/abs/2004.09602"
    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    leaves: ClassVar[frozenset[str]] = frozenset({"quantized"})
    removes: ClassVar[frozenset[str]] = frozenset({"dense"})

    technique: Literal["ptq"] = "ptq"
    scheme: SchemeName
    """Number format of weights and activations."""
    scale_search: Literal["max", "mse"] = "mse"
    """`max`: scales from the largest magnitude. `mse`: scales with the least squared rounding error of the weights."""
    kv_cache: KvCacheName | None = None
    """Number format of the KV cache; its scales are measured on the calibration text."""
    ignore: tuple[Pattern, ...] = Field(default=(), max_length=256)
    """Linear layers of the decoder to leave alone: exact module names, or regular expressions after `re:`.
    Embeddings, the head and expert routers are always left."""
    fallback: tuple[PtqFallback, ...] = ()
    """Formats to try in order when the gate fails."""

    @property
    def preset(self) -> Scheme:
        """The named scheme."""
        return PRESETS[self.scheme]

    @property
    def summary(self) -> str:
        """What was done, in one line for people."""
        kv_cache = f"; {self.kv_cache.upper()} KV cache" if self.kv_cache else ""
        return f"{self.preset.title}{kv_cache}"

    @property
    def alternatives(self) -> tuple[Self, ...]:
        """One configuration for each fallback; the gate stays, and stops the run when the last one fails it too."""
        if self.gate is None:
            return ()
        gates = [self.gate] * (len(self.fallback) - 1) + [self.gate.model_copy(update={"on_fail": "stop"})]
        return tuple(
            self.model_copy(update={"scheme": choice.scheme, "gate": gate, "fallback": self.fallback[place + 1 :]})
            for place, (choice, gate) in enumerate(zip(self.fallback, gates, strict=False))
        )

    def apply(self, run: "Run") -> None:
        """Write the checkpoint with its scales; the weights stay in high precision for what comes after."""
        from optcore.calibration.quantize import quantize_checkpoint

        quantize_checkpoint(run, self)
