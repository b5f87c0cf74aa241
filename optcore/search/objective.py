"""What a recipe may ask for in the place of a chain: bounds, what to prefer among what meets them, and a budget."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from optcore.frozen import Frozen
from optcore.techniques import AnyTechnique

MAX_CANDIDATES = 64
"""Of one run, the product of a sweep counted out."""
MAX_ENTRIES = 16
"""Of one chain, the shared ones counted in."""

Preference = Literal["bytes", "kl", "seconds_per_token"]
Chain = Annotated[tuple[AnyTechnique, ...], Field(min_length=1, max_length=MAX_ENTRIES)]
Pointer = Annotated[str, StringConstraints(pattern=r"^/", max_length=500)]
Values = Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=MAX_CANDIDATES)]
Sweep = dict[Pointer, Values]


class RaceBudget(Frozen):
    """What a race may take. It ends between two stages, never inside one, and never without a result."""

    candidates: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    """Chains that are tried, the first ones of the list; all when absent."""
    seconds: int | None = Field(default=None, ge=1, le=10**8)
    """Of stages' own time. When it is used up no further candidate is begun, and of those that were measured the best
    one is finished. Candidates of the planner that train begin in its first half only."""


class Objective(Frozen):
    """A goal: bounds that a result must meet, and what is preferred among those that do."""

    max_bytes: int | None = Field(default=None, ge=1)
    """Of the result's weights on disk."""
    max_bits_per_weight: float | None = Field(default=None, gt=0, le=32)
    """Of the result's weights on disk, embeddings, norms and scales counted in, over its own parameters."""
    max_kl: float | None = Field(default=None, gt=0)
    """Mean KL divergence to the source, nats a token, as `fidelity` measures it."""
    min_tokens_per_second: float | None = Field(default=None, gt=0)
    """Decode, as `throughput` or `engines` measures it on the worker."""
    minimize: Preference | None = None
    """What is preferred among the results that meet the bounds. Absent: `bytes` where `max_kl` bounds the quality,
    else `kl` (of a classifier the accuracy that is lost)."""
    on_miss: Literal["fail", "nearest"] | None = None
    """When no result meets the bounds. `nearest`: the one that comes nearest is the result, with a notice. `fail`: the
    run fails and says how near it came. Absent: `fail` where the recipe publishes, else `nearest`."""
    budget: RaceBudget = RaceBudget()
    candidates: tuple[Chain, ...] = Field(default=(), max_length=MAX_CANDIDATES)
    """What follows on the recipe's own `chain`, one list for each candidate; the planner's own when empty."""

    @property
    def preference(self) -> Preference:
        """What to minimize."""
        return self.minimize or ("bytes" if self.max_kl is not None else "kl")

    @property
    def is_about_speed(self) -> bool:
        """Whether speed decides: then size and quality alone put nobody out of the race."""
        return self.min_tokens_per_second is not None or self.minimize == "seconds_per_token"

    @property
    def is_about_size(self) -> bool:
        """Whether size is bounded."""
        return self.max_bytes is not None or self.max_bits_per_weight is not None

    @model_validator(mode="after")
    def _candidates_differ(self) -> Self:
        if any(chain in self.candidates[:place] for place, chain in enumerate(self.candidates)):
            raise ValueError("two candidates are the same chain; leave one out")
        return self
