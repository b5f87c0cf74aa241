"""A window of attention: each token sees the last ones and the first of all."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optcore.techniques.restructuring import Restructuring

if TYPE_CHECKING:
    from optcore.run import Run


class AttentionWindow(Restructuring):
    """Let tokens attend to a sliding window and to the first tokens, the sinks, alone (StreamingLLM): a KV cache of
    that size, whatever the length of the text. Positions stay; layers with a window of their own are left alone.

    Nothing is trained, and what lies further back is lost: `long_context` is measured whether the recipe names it or
    not. Without sinks, a model whose configuration knows `sliding_window` gets it there, where engines honour it;
    anything else stands in `conditional.json`, which no serving engine reads.
    """

    title: ClassVar[str] = "Attention window"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"
    leaves: ClassVar[frozenset[str]] = frozenset({"windowed"})

    technique: Literal["attention_window"] = "attention_window"
    window: int = Field(ge=1, le=1_048_576)
    """Tokens that a token sees, itself counted in."""
    sinks: int = Field(default=4, ge=0, le=1024)
    """Tokens at the beginning of a text that all see besides."""
    layers: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=1000)] = "all"
    """Layers that get the window, from 0; all others keep full attention."""

    @property
    def keeps(self) -> frozenset[str]:
        """Weights stay what they are, and so does their form."""
        return frozenset({"sparse", "factored", "palettized", "shared", "tied"})

    @property
    def makes(self) -> frozenset[str]:
        """Sinks stand in no model's configuration; a window alone may, which the model says."""
        return self.leaves | ({"conditional"} if self.sinks else set())

    @property
    def keeps_sizes(self) -> bool:
        """Weights are linked."""
        return True

    @property
    def summary(self) -> str:
        """What it does to a model, in one line for people."""
        where = "all layers" if self.layers == "all" else f"{len(self.layers)} layers"
        return f"attention to {self.window} tokens and {self.sinks} sinks in {where}"

    @property
    def trivial(self) -> dict[str, object]:
        """As many keys, without sinks."""
        return {"window": self.window + self.sinks, "sinks": 0} if self.sinks else {}

    def apply(self, run: "Run") -> None:
        """Link the checkpoint, and say which keys are seen."""
        from optcore.restructure.attention_window import set_window

        set_window(run, self)
