"""How large a draft's decoder layers are: as its target's, so that engines keep keys and values of one shape."""

from typing import Any

from optcore.frozen import Frozen

_THETA = 10000.0
_HEAD = 64
"""Size of heads where the target has none, as state-space models."""


class Sizes(Frozen):
    """Of Llama-style decoder layers, in the words of Llama's configuration, in which layouts write it."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = _THETA
    norm_before_residual: bool = False
    """Of EAGLE-3, what its layer adds to: the features as they are (EAGLE, SpecForge), or normed (the default of
    speculators)."""

    @classmethod
    def of(cls, config: Any, *, normed: bool = False) -> "Sizes":
        """A target's, by its text configuration, with plain rotary positions whatever the target stretches them by.

        A draft learns its own positions, and engines are known to fail on drafts with a scaled kind.
        """
        width = int(config.hidden_size)
        heads = _whole(config, "num_attention_heads") or max(1, width // _HEAD)
        return cls(
            hidden_size=width,
            num_attention_heads=heads,
            num_key_value_heads=_whole(config, "num_key_value_heads") or heads,
            head_dim=_whole(config, "head_dim") or width // heads,
            intermediate_size=_whole(config, "intermediate_size", "ffn_dim") or 4 * width,
            rms_norm_eps=getattr(config, "rms_norm_eps", None) or 1e-6,
            rope_theta=_theta(getattr(config, "rope_parameters", None) or {}),
            norm_before_residual=normed,
        )


def _whole(config: Any, *names: str) -> int | None:
    """The first of these that the configuration has as a number; lists are of models with unequal layers."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


def _theta(rope: dict[str, Any]) -> float:
    """Of all layers, or of those that attend to everything where kinds of layers differ (Gemma 3)."""
    return float(rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta") or _THETA)
