"""How a token is drawn: the one distribution that target and draft are both turned into before anything is compared.

Shapes: N rows, V vocabulary.
"""

from pydantic import Field

from optcore.frozen import Frozen


class Sampling(Frozen):
    """Temperature, top-k and top-p, applied in this order, as Hugging Face's logits processors are."""

    temperature: float = Field(default=0.0, ge=0, le=10)
    """0 takes the likeliest token."""
    top_k: int | None = Field(default=None, ge=1)
    """Only so many likeliest tokens can be drawn."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens can be drawn that hold this much of the mass together."""


GREEDY = Sampling()
