"""The compact checkpoint: what shares storage is stored once. No engine loads it; our decoder gives the plain one."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from optcore.export.base import Export

if TYPE_CHECKING:
    from optcore.run import Run


class Compact(Export):
    """Tables and indices, shared numbers, factors, zeros as bits: each tensor in the smallest form that gives its exact
    bits. For storing and sending a model: no engine loads it, it is decoded to a plain checkpoint first."""

    title: ClassVar[str] = "compact checkpoint"
    schemes: ClassVar[frozenset[str]] = frozenset()
    takes_unquantized: ClassVar[bool] = True

    format: Literal["compact"] = "compact"

    @model_validator(mode="after")
    def _no_engine(self) -> Self:
        if self.engine:
            raise ValueError("no engine loads a compact checkpoint: leave `engine` out, or use `format: dense`")
        return self

    def write(self, run: "Run") -> None:
        """Write each tensor's form and the document, then decode all of it and compare it with the checkpoint."""
        from optcore.export.compact_writer import write_compact

        write_compact(run)
