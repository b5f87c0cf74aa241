"""How well a speculative draft guesses the model, and what that buys on this machine."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run

SHORTEST_tokens = 8
"""Of a text in which there is something to guess."""


class Acceptance(Evaluator):
    """Tokens that a pass of the model leaves with the draft (acceptance length), greedily and sampled, beside plain
    n-grams, on text that the model itself writes behind held-out prompts; the draft's cost, and the speed-up that
    follows and the one that is measured. A chain of tokens is drafted, without a serving engine."""

    title: ClassVar[str] = "Acceptance of the draft"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation"})

    evaluator: Literal["acceptance"] = "acceptance"
    prompts: int = Field(default=32, ge=2, le=100_000)
    """Pieces of held-out text to go on from."""
    prompt_tokens: int = Field(default=64, ge=1, le=131_072)
    new_tokens: int = Field(default=128, ge=SHORTEST_tokens, le=131_072)
    """Tokens that the model writes behind each prompt, greedily and once more sampled."""
    tokens: int = Field(default=5, ge=1, le=32)
    """Drafted a round."""
    temperature: float = Field(default=1.0, gt=0, le=10)
    """Of the sampled text; greedy text is always measured too."""
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(default=(1, 8), max_length=32)
    """Sequences that are decoded together where time is measured; no more than there are prompts."""
    timed: bool = True
    """Whether passes are timed and text is decoded with and without the draft, by turns."""

    def within(self, longest: int) -> "Acceptance":
        """The same on texts that a model of so many positions holds, shortened alike where they are too long."""
        whole = self.prompt_tokens + self.new_tokens
        if whole <= longest:
            return self
        new_tokens = max(SHORTEST_tokens, self.new_tokens * longest // whole)
        return self.model_copy(update={"new_tokens": new_tokens, "prompt_tokens": max(1, longest - new_tokens)})

    def measure(self, run: "Run") -> list[Measurement]:
        """Without a draft, what n-grams are worth is measured alone."""
        from optcore.evaluate.acceptance_stream import measure_draft

        return measure_draft(run, self)
