"""How a draft does on the model that it was made for: `acceptance.json` beside it, to compare other models with.

No torch.
"""

from pathlib import Path

from optcore.documents import read_document
from optcore.frozen import Frozen

MADE = "acceptance.json"


class Asked(Frozen):
    """What is measured: only what was asked alike can be compared."""

    count: int
    """Tokens drafted a round (K), in a chain."""
    prompts: int
    prompt_tokens: int
    new_tokens: int
    temperature: float
    """Of the sampled text."""
    top_k: int | None
    top_p: float | None


class Made(Frozen):
    """What a draft achieved on the model that it was made for."""

    asked: Asked
    greedy: float
    """Tokens a pass of the target (tau)."""
    sampled: float

    def save(self, folder: Path) -> None:
        """Write it beside the draft, for whoever changes the model afterwards."""
        (folder / MADE).write_text(self.model_dump_json(indent=2) + "\n")


def read_made(folder: Path, field: str = "/chain") -> Made | None:
    """None for a draft of which nothing is said. Raises `BadCheckpoint`, about that `field` of the recipe, for a file
    that is something else."""
    return read_document(folder / MADE, Made, field)
