"""Rotation: outliers spread over channels before quantization, folded into the weights once and for all."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.techniques.base import Technique

if TYPE_CHECKING:
    from optcore.run import Run


class Rotate(Technique):
    """Multiply the residual stream and the values of each head by Hadamard matrices, folded into the weights.

    The model computes the same as before and needs no engine support; what changes is how well it can be rounded. An
    entry before the one that quantizes. Needs RMSNorm before each block (Llama, Qwen, Mistral, Phi-3, DeepSeek ...).
    """

    title: ClassVar[str] = "Rotation"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.00456"
    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    removes: ClassVar[frozenset[str]] = frozenset({"unrotated"})

    technique: Literal["rotate"] = "rotate"
    residual: bool = True
    """Rotate the residual stream; the norms' gains move into the layers that read them, and a head that was tied to the
    embeddings becomes a matrix of its own."""
    heads: bool = True
    """Rotate the values of each attention head, where its structure allows it."""
    block: int | None = Field(default=None, ge=2)
    """Largest number of channels of the residual stream that are mixed with each other; by default all of them, or the
    largest part for which there is a Hadamard matrix."""
    signs: bool = True
    """Random signs before the Hadamard matrix, drawn from the recipe's seed."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        parts = [name for name, chosen in (("residual stream", self.residual), ("values", self.heads)) if chosen]
        return f"Hadamard rotation of {' and '.join(parts) or 'nothing'}"

    @property
    def keeps_sizes(self) -> bool:
        """Orthogonal matrices are square."""
        return True

    @property
    def keeps_states(self) -> bool:
        """The residual stream's get another basis."""
        return not self.residual

    def apply(self, run: "Run") -> None:
        """Write the rotated checkpoint."""
        from optcore.streaming.rotated import rotate_checkpoint

        rotate_checkpoint(run, self)
