"""What a race between candidates left: each of them with what was measured of it, and which of them is best at what."""

from typing import Literal

from optcore.frozen import Frozen

Standing = Literal["winner", "front", "dominated", "stopped", "refused", "failed"]


class Goal(Frozen):
    """A bound that the result was to meet."""

    name: Literal["max_bytes", "max_bits_per_weight", "max_kl", "min_tokens_per_second"]
    bound: float
    value: float | None
    """What the winner has; None where it was not measured."""
    met: bool


class Candidate(Frozen):
    """One chain of a race."""

    name: str
    """What the names of its stages begin with, such as `c02`."""
    chain: str
    """What it does, in one line for people."""
    recipe: dict[str, object]
    """It alone, with commits pinned: the same checkpoint again."""
    status: Standing
    """`winner` and `front`: no other is at least as good at everything. `dominated`: another is. `stopped` before it
    was finished, `refused` before any work, `failed` in a stage."""
    why: str = ""
    """Of one that was stopped, refused or failed."""
    weight_bytes: int | None = None
    """Of its files; of one that was stopped, of the checkpoint that they would have been written from."""
    bits_per_weight: float | None = None
    kl: float | None = None
    """Mean KL to the source, nats a token; of one that was stopped, on the windows that it was stopped by."""
    accuracy_loss: float | None = None
    """Of a classifier: the source's accuracy less its own, 0 to 1."""
    tokens_per_second: float | None = None
    """Decode."""
    seconds: float = 0.0
    """Of the stages that no candidate before it had needed."""
    stages_run: int = 0
    stages_reused: int = 0
    """Its stages that one before it had needed too."""
    dominated_by: str = ""
    """Name of a candidate that is at least as good at everything."""

    @property
    def is_on_front(self) -> bool:
        """Whether it is one of the results that nothing else is better than at everything."""
        return self.status in ("winner", "front") and not self.dominated_by


class Front(Frozen):
    """A race's end: its candidates in the order in which they began."""

    candidates: tuple[Candidate, ...]
    goals: tuple[Goal, ...] = ()
    minimized: Literal["bytes", "kl", "seconds_per_token"] = "kl"
    """What the winner was chosen by among those that meet the goals."""
    stages_run: int
    """Different stages, each counted once, whether this attempt ran it or an earlier one."""
    stages_reused: int
    """How often a candidate found one done that another had needed."""
    seconds: float
    """What the stages took, each once."""
    seconds_apart: float
    """What the candidates' stages would have taken in runs of their own, those that race alone left out: of stages that
    were measured, at what they took."""
    seconds_apart_inferred: float = 0.0
    """The part of it that nobody measured: of candidates that were stopped, the rest of their way at the mean of what
    it took those that were finished."""
