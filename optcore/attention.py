"""What a serving engine's cache and attention kernels depend on, read from a model's `config.json`."""

from typing import Any, NamedTuple

from optcore.architecture import positions

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_KINDS = ("layer_types", "layers_block_type")
_RECURRENT = ("mamba", "linear", "recurrent", "conv")
"""Parts of the names of layers that keep a state instead of keys and values."""
_RECURRENT_KEYS = ("mamba_", "ssm_", "linear_conv_", "hybrid_override_pattern", "attn_layer_period")
_MOST_gpus = 16


class Attention(NamedTuple):
    """How a model attends; None where its config does not say."""

    heads: int | None
    key_value_heads: int | None
    head_size: int | None
    longest: int | None
    """Tokens that its positions reach."""
    latent: bool = False
    """Multi-head latent attention: one compressed cache for all heads."""
    recurrent: bool = False
    """Some layers keep a recurrent state, which no page holds."""

    @property
    def degrees(self) -> tuple[int, ...]:
        """Numbers of GPUs, powers of two, that heads can be shared out to without storing any head's cache twice."""
        if self.heads is None:
            return (1,)
        shared = self.heads if self.latent else (self.key_value_heads or self.heads)
        counts = [2**power for power in range(_MOST_gpus.bit_length())]
        return tuple(count for count in counts if shared % count == 0 and self.heads % count == 0)


def attention_of(config: dict[str, Any]) -> Attention:
    """What a config says. Numbers that are none are left out: engines refuse such a config themselves."""
    text = {**config, **(config.get("text_config") or {})}
    heads, hidden = _number(text, _HEADS), _number(text, ("hidden_size", "n_embd", "d_model"))
    own = 1 if text.get("multi_query") and not text.get("new_decoder_architecture") else heads
    kinds = [str(kind) for name in _KINDS for kind in text.get(name) or ()]
    return Attention(
        heads=heads,
        key_value_heads=_number(text, _KEY_VALUE_HEADS) if own == heads else own,
        head_size=_number(text, ("head_dim",)) or (hidden // heads if hidden and heads else None),
        longest=positions(config),
        latent=_number(text, ("kv_lora_rank",)) is not None,
        recurrent=any(part in kind for kind in kinds for part in _RECURRENT)
        or any(name.startswith(_RECURRENT_KEYS) and text[name] is not None for name in text),
    )


def _number(text: dict[str, Any], names: tuple[str, ...]) -> int | None:
    found = (text.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value is not True and value > 0), None)
