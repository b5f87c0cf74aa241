"""Ways to meet an entry of the chain: the technique itself, or a fallback."""

from collections.abc import Iterator
from typing import NamedTuple

from optcore.places import attempts
from optcore.plan import technique_stage
from optcore.techniques import Technique


class Attempt(NamedTuple):
    """One way to meet an entry of the chain: the technique itself, or a fallback."""

    stage: str
    technique: Technique
    place: str
    """Where it stands in the recipe, a JSON Pointer."""
    following: str
    """The stage of the next attempt; empty for the last one."""


def attempts_at(number: int, technique: Technique) -> Iterator[Attempt]:
    """An entry of the chain, its number counted from 1, and what is tried when its gate fails."""
    places, candidates = zip(*attempts(number - 1, technique), strict=True)
    names = [technique_stage(number, candidate, attempt) for attempt, candidate in enumerate(candidates)]
    for name, candidate, place, following in zip(names, candidates, places, (*names[1:], ""), strict=True):
        yield Attempt(name, candidate, place, following)
