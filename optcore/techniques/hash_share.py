"""Hashed embeddings: many numbers of a table share one."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class HashShare(Restructuring):
    """Let the numbers of the token embeddings share storage: a hash of row and column says which of fewer numbers an
    element is, and with which sign (HashedNets). A tied head has the same numbers.

    To learn from more than to use: fitted to a trained table it costs much, and no kernel gains from it. `distill`
    after it trains the shared numbers. The result is a plain checkpoint, as large as before; the target `compact`
    stores the shared numbers alone. The last entry of a chain, but for training.
    """

    title: ClassVar[str] = "Hashed embeddings"
    paper: ClassVar[str] = "https://arxiv.org/abs/1504.04788"
    leaves: ClassVar[frozenset[str]] = frozenset({"shared"})

    technique: Literal["hash_share"] = "hash_share"
    ratio: float = Field(default=0.5, ge=2**-10, le=1)
    """How many numbers are stored, as a share of the table's."""
    method: Literal["murmur3", "modulo"] = "murmur3"
    """The hash. `modulo` deals elements out in their order and changes no sign."""
    weighting: Literal["counts", "none"] = "counts"
    """How much a row's error counts in the fit: by how often its token is in the calibration set, plus one, or all the
    same, which needs no text."""

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        weighted = ", rows weighted by their tokens' counts" if self.weighting == "counts" else ""
        return f"embeddings hashed to {self.ratio:.4g} of their numbers by {self.method}{weighted}"

    @property
    def trivial(self) -> dict[str, object]:
        """As many numbers, dealt out in order and without signs."""
        return {"method": "modulo"}

    def apply(self, run: "Run") -> None:
        """Write the checkpoint with the shared numbers at their places, and the numbers."""
        from optcore.restructure.hash_share import hash_embeddings

        hash_embeddings(run, self)
