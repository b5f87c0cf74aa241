"""How a draft does on the model that it was made for: `acceptance.json` beside it, to compare other models with.

No torch.
"""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from optcore.acceptance_length import AcceptanceLength
from optcore.documents import read_document
from optcore.frozen import Frozen

MADE = "acceptance.json"
_ROUNDING = 1e-6
"""What sums of probabilities may be off by."""


class Asked(Frozen):
    """What is measured: only what was asked alike can be compared."""

    count: int = Field(ge=1)
    """Tokens drafted a round (K), in a chain."""
    prompts: int
    prompt_tokens: int
    new_tokens: int
    temperature: float
    """Of the sampled text."""
    top_k: int | None
    top_p: float | None
    text: str
    """SHA-256 of the prompts' token ids: code is guessed more easily than prose."""
    seed: int


class Made(Frozen):
    """What a draft achieved on the model that it was made for, or on one that it was brought to."""

    asked: Asked
    greedy: AcceptanceLength
    sampled: AcceptanceLength

    @field_validator("greedy", "sampled")
    @classmethod
    def _can_be(cls, length: AcceptanceLength, info: ValidationInfo) -> AcceptanceLength:
        """Whoever publishes a draft can write anything beside it."""
        if asked := info.data.get("asked"):
            low, high = length.interval.low, length.interval.high
            if not 1 - _ROUNDING <= min(length.tau, low) <= max(length.tau, high) <= asked.count + 1 + _ROUNDING:
                raise ValueError(f"with {asked.count} drafted tokens a pass leaves 1 to {asked.count + 1}")
            if low > high:
                raise ValueError("an interval ends before it begins")
        return length

    def save(self, folder: Path) -> None:
        """Write it beside the draft, for whoever changes the model afterwards."""
        (folder / MADE).write_text(self.model_dump_json(indent=2) + "\n")


def baseline(brought: Made | None, measured: Made) -> Made:
    """What the result is compared with: how a draft that was brought along did on the model that it was made for, which
    may be none that this run has; where that was asked otherwise, how it does on the model that it was brought to."""
    return brought if brought and brought.asked == measured.asked else measured


def read_made(folder: Path, field: str = "/chain") -> Made | None:
    """None for a draft of which nothing is said. Raises `BadCheckpoint`, about that `field` of the recipe, for a file
    that is something else."""
    return read_document(folder / MADE, Made, field)
