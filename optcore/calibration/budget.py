"""Which number format each part of the model gets under a budget of bits, from scores alone; and the record of it."""

from collections.abc import Mapping, Sequence

from optcore.algorithms.allocation import Option, allocate
from optcore.errors import RecipeError
from optcore.frozen import Frozen

NONE = "none"


class Candidate(Frozen):
    """A number format for one unit."""

    cost: int
    """Stored bits, scales included. Where active parameters count: each module's times the tokens that reached it."""
    score: float
    """Predicted KL divergence from the original model, in nats a token."""


class Unit(Frozen):
    """Linear layers that must have one format: what engines fuse into one matrix, or all experts of a layer."""

    modules: tuple[str, ...]
    """Names in the checkpoint."""
    size: int
    """Weights; where active parameters count: each module's times the tokens that reached it."""
    candidates: Mapping[str, Candidate]
    """By scheme; `none` leaves the unit in 16 bits."""


class Choice(Frozen):
    """What one unit got."""

    modules: tuple[str, ...]
    scheme: str
    bits: float
    """Stored bits a weight."""
    score: float
    scores: dict[str, float]
    """Of every candidate, for whoever wants to know what else was on offer."""


class Allocation(Frozen):
    """The outcome, as it stands in the stage's record."""

    effective_bits: float
    """What the budget asked for."""
    bits: float
    """What came out: the mean over all linear layers, those in 16 bits included; embeddings and the head are not."""
    predicted_kl: float
    """Sum of the scores, nats a token."""
    choices: tuple[Choice, ...]

    @property
    def assignment(self) -> dict[str, str | None]:
        """Scheme by module name, None for high precision."""
        return {
            name: None if choice.scheme == NONE else choice.scheme for choice in self.choices for name in choice.modules
        }


def spend(units: Sequence[Unit], effective_bits: float) -> Allocation:
    """The candidates with the least sum of scores whose mean cost is at most `effective_bits` a weight.

    Raises `RecipeError` that says the least reachable bits.
    """
    size = sum(unit.size for unit in units)
    least = sum(min(one.cost for one in unit.candidates.values()) for unit in units) / size
    if least > effective_bits:
        raise RecipeError(
            f"effective_bits is {effective_bits:g}, and the narrowest candidates need {least:.3f}: "
            "scales count, and so do layers that `ignore` leaves in 16 bits",
            remedy=f"ask for at least {least + 0.0005:.3f}, or add a narrower candidate",
            field="/chain",
        )
    options = [[Option(one.cost, one.score) for one in unit.candidates.values()] for unit in units]
    chosen = allocate(options, int(effective_bits * size))
    choices = tuple(_choice(unit, list(unit.candidates)[place]) for unit, place in zip(units, chosen, strict=True))
    cost = sum(unit.candidates[choice.scheme].cost for unit, choice in zip(units, choices, strict=True))
    return Allocation(
        effective_bits=effective_bits,
        bits=cost / size,
        predicted_kl=sum(choice.score for choice in choices),
        choices=choices,
    )


def _choice(unit: Unit, scheme: str) -> Choice:
    one = unit.candidates[scheme]
    scores = {name: candidate.score for name, candidate in unit.candidates.items()}
    bits = one.cost / unit.size if unit.size else 0.0
    return Choice(modules=unit.modules, scheme=scheme, bits=bits, score=one.score, scores=scores)
