"""What a model still knows of what lies further back than a window: fidelity by position, and copying from there."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optcore.evaluate.base import Evaluator
from optcore.report import Measurement, Task

if TYPE_CHECKING:
    from optcore.run import Run

LENGTH_tokens = 4096
LONGEST_tokens = 1_048_576


class LongContext(Evaluator):
    """KL and perplexity by position in long texts, and copying: random tokens stand in the text and are repeated at its
    end, so that only a model which still sees them can predict them (a needle that needs no instruction)."""

    title: ClassVar[str] = "Long context"
    tasks: ClassVar[frozenset[Task]] = frozenset({"text-generation"})

    evaluator: Literal["long_context"] = "long_context"
    window: int = Field(default=1024, ge=1, le=LONGEST_tokens)
    """What is nearer and what is further than so many tokens is measured apart."""
    samples: int = Field(default=16, ge=1, le=100_000)
    """Windows of text."""
    sequence_length: int = Field(default=LENGTH_tokens, ge=64, le=LONGEST_tokens)
    """Tokens a window; cut to what the model can hold."""
    span: int = Field(default=16, ge=2, le=256)
    """Random tokens to copy."""

    def measure(self, run: "Run") -> list[Measurement]:
        """Stream both models layer by layer over the same texts."""
        from optcore.evaluate.long_context_stream import measure_long_context

        return measure_long_context(run, self)
