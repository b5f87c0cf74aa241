"""What finished stages say of the formulas: how fast a machine is, and what a kind of stage takes beyond its formula.

    seconds = raw x machine x kind        memory = raw x kind of the memory there

The machine's factor is the median over all stages there; a kind's the median of what is left, over all machines, drawn
towards 1 as long as few of its stages were seen. Medians, so that a stage beside which something else ran, or one that
was killed and went on, does no harm. Memory is what jobs are refused for, and whose stages are seen is not asked: a
kind's factor is that of the machine's own stages, of other machines' where it has none, and never far from 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log, sqrt
from statistics import median
from typing import NamedTuple, TypeVar

from optcore.estimate.constants import PRIOR_spread
from optcore.estimate.document import StageCostSeen

K = TypeVar("K")

_DOUBT_stages = 1.0
"""Seen stages of a kind that weigh as much as the formula."""
_PRIOR_stages = 3.0
"""Seen stages whose spread weighs as much as the one before anything was learned."""
_NARROWEST = 1.15
"""Nobody's clock is better than this."""
_FARTHEST = log(100.0)
"""What is further from the formula, by this factor, is held to it."""
_FARTHEST_memory = log(2.0)


class Correction(NamedTuple):
    """Of the formula for one kind of stage on one kind of machine."""

    seconds: float = 1.0
    low: float = 1 / PRIOR_spread
    """Of the corrected seconds: one of twenty stages takes less."""
    high: float = PRIOR_spread
    """One of twenty takes more, so nine of ten are between the two: 1.645 standard deviations to either side."""
    memory: float = 1.0
    learned_from: int = 0
    """Stages of this kind, anywhere; of this machine, where none was of this kind."""


class Rates(NamedTuple):
    """All that was learned."""

    machines: Mapping[str, float] = {}
    """Logarithm of the factor, by kind of machine."""
    kinds: Mapping[str, float] = {}
    memories: Mapping[tuple[str, str], float] = {}
    """By kind of machine and of stage; the empty machine is for all of them."""
    spreads: Mapping[str, float] = {}
    """Standard deviation of what is left, by kind; the empty name is for all of them."""
    counts: Mapping[str, int] = {}
    """Stages seen, by kind of stage or of machine."""

    @classmethod
    def from_seen(cls, seen: Sequence[StageCostSeen]) -> "Rates":
        """Of stages that were run, not found done."""
        if not seen:
            return cls()
        ratios = [(one, _ratio(one.seconds, one.raw_seconds)) for one in seen]
        machines = {name: median(found) for name, found in _grouped((one.machine, r) for one, r in ratios).items()}
        left = _grouped((one.kind, ratio - machines[one.machine]) for one, ratio in ratios)
        kinds = {name: _drawn(found) for name, found in left.items()}
        sizes = [(one, _ratio(one.memory_bytes, one.raw_memory_bytes)) for one in seen]
        held = _grouped(((where, one.kind), ratio) for one, ratio in sizes for where in ("", one.machine))
        memories = {name: _held(_drawn(found)) for name, found in held.items()}
        errors = {name: [value - kinds[name] for value in found] for name, found in left.items()}
        spreads = {name: _spread(found) for name, found in errors.items()}
        spreads[""] = _spread([error for found in errors.values() for error in found])
        counts = {name: len(found) for name, found in left.items()}
        counts |= {name: sum(one.machine == name for one in seen) for name in machines}
        return cls(machines, kinds, memories, spreads, counts)

    def correction(self, machine: str, kind: str) -> Correction:
        """Of what was seen; the formula as it is, with a wide range, of what never was."""
        if not self.counts:
            return Correction()
        factor = exp(self.machines.get(machine, 0.0) + self.kinds.get(kind, 0.0))
        spread = self.spreads.get(kind, log(PRIOR_spread) / 1.645)
        if machine not in self.machines:
            spread = max(spread, log(PRIOR_spread) / 1.645)
        reach = max(_NARROWEST, exp(1.645 * spread))
        learned = self.counts.get(kind, 0) or self.counts.get(machine, 0)
        memory = self.memories.get((machine, kind), self.memories.get(("", kind), 0.0))
        return Correction(factor, 1 / reach, reach, exp(memory), learned)


def _ratio(found: float, raw: float) -> float:
    return max(-_FARTHEST, min(_FARTHEST, log(found / raw)))


def _held(ratio: float) -> float:
    return max(-_FARTHEST_memory, min(_FARTHEST_memory, ratio))


def _grouped(pairs: Iterable[tuple[K, float]]) -> dict[K, list[float]]:
    groups = defaultdict[K, list[float]](list)
    for name, value in pairs:
        groups[name].append(value)
    return groups


def _drawn(found: Sequence[float]) -> float:
    """The median, drawn towards nothing by the formula."""
    return median(found) * len(found) / (len(found) + _DOUBT_stages)


def _spread(errors: Sequence[float]) -> float:
    """By the median distance, which outliers do not move, with the prior's share."""
    prior = log(PRIOR_spread) / 1.645
    own = 1.4826 * median(map(abs, errors)) if errors else prior
    return sqrt((len(errors) * own**2 + _PRIOR_stages * prior**2) / (len(errors) + _PRIOR_stages))
