"""How large a draft's decoder layers are: as its target's, so that engines keep keys and values of one shape."""

from typing import Any

from optcore.frozen import Frozen

_THETA = 10000.0
_HEAD = 64
"""Size of heads where the target has none, as state-space models."""


class Sizes(Frozen):
    """Of Llama-style decoder layers."""

    width: int
    """Hidden size."""
    intermediate: int
    """Hidden size of the feed-forward network."""
    heads: int
    kv_heads: int
    head_dim: int
    theta: float = _THETA
    """The base of rotary frequencies."""
    epsilon: float = 1e-6
    """Of RMS norms."""

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """A target's, by its text configuration, with plain rotary positions whatever the target stretches them by.

        A draft learns its own positions, and engines are known to fail on drafts with a scaled kind.
        """
        width = int(config.hidden_size)
        heads = _whole(config, "num_attention_heads") or max(1, width // _HEAD)
        return cls(
            width=width,
            intermediate=_whole(config, "intermediate_size", "ffn_dim") or 4 * width,
            heads=heads,
            kv_heads=_whole(config, "num_key_value_heads") or heads,
            head_dim=_whole(config, "head_dim") or width // heads,
            theta=_theta(getattr(config, "rope_parameters", None) or {}),
            epsilon=getattr(config, "rms_norm_eps", None) or 1e-6,
        )


def _whole(config: Any, *names: str) -> int | None:
    """The first of these that the configuration has as a number; lists are of models with unequal layers."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _theta(rope: dict[str, Any]) -> float:
    """Of all layers, or of those that attend to everything where kinds of layers differ (Gemma 3)."""
    return float(rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta") or _THETA)
