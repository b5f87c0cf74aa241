"""How far an engine's predictions are from the source's, in numpy: torch would count as the engine's memory.

Legend: P positions, V vocabulary or labels.
"""

from typing import NamedTuple

import numpy as np

_CHUNK_elements = 1 << 23
"""At once in float64: 64 MiB."""


class Distance(NamedTuple):
    """Sums over positions."""

    positions: int = 0
    kl: float = 0.0
    """Nats, KL(source || engine)."""
    agreements: int = 0
    """Positions where both find the same prediction likeliest."""

    def plus(self, other: "Distance") -> "Distance":
        """Sums over both."""
        return Distance(self.positions + other.positions, self.kl + other.kl, self.agreements + other.agreements)


def distance(source_PV: np.ndarray, own_PV: np.ndarray) -> Distance:
    """Compare logits, a few positions at a time. Raises `ValueError` for other shapes and for what is not finite."""
    if source_PV.shape != own_PV.shape:
        raise ValueError(f"the engine's logits have the shape {own_PV.shape}, and the source's {source_PV.shape}")
    found, rows = Distance(), max(1, _CHUNK_elements // source_PV.shape[-1])
    for start in range(0, len(source_PV), rows):
        found = found.plus(_distance(source_PV[start : start + rows], own_PV[start : start + rows]))
    return found


def _distance(source_PV: np.ndarray, own_PV: np.ndarray) -> Distance:
    if not np.isfinite(own_PV).all():
        raise ValueError("the engine's logits are not finite")
    p_PV, q_PV = _log_softmax(source_PV), _log_softmax(own_PV)
    kl = float((np.exp(p_PV) * (p_PV - q_PV)).sum())
    return Distance(len(own_PV), kl, int((source_PV.argmax(-1) == own_PV.argmax(-1)).sum()))


def _log_softmax(logits_PV: np.ndarray) -> np.ndarray:
    shifted_PV = logits_PV.astype(np.float64) - logits_PV.max(-1, keepdims=True)
    normalized_PV: np.ndarray = shifted_PV - np.log(np.exp(shifted_PV).sum(-1, keepdims=True))
    return normalized_PV
