"""The configuration of a draft's decoder layers in Llama's words, which every engine's loader starts from.

Rotary positions are written as `rope_theta` beside an empty `rope_scaling`: older readers know nothing else, and
transformers 5 makes its `rope_parameters` of them.
"""

from typing import Any

from optcore.drafts.checks import real_number, refused, section, whole_number
from optcore.drafts.parts import DraftParts, TargetFacts

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def layer_config(parts: DraftParts, facts: TargetFacts, layers: int = 1) -> dict[str, Any]:
    """What all layouts say of a draft's layers."""
    return {
        "model_type": "llama",
        **{name: parts.sizes[name] for name in _SIZES},
        "num_hidden_layers": layers,
        "hidden_act": "silu",
        "rms_norm_eps": parts.sizes["rms_norm_eps"],
        "rope_theta": parts.sizes["rope_theta"],
        "rope_scaling": None,
        "max_position_embeddings": facts.longest,
        "vocab_size": parts.vocabulary.size,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "use_cache": True,
        **{name: facts.text.get(name) for name in _TOKENS},
    }


def layer_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes in such a configuration. Raises `BadCheckpoint` for a kind of layer that is not ours."""
    _require_plain(config)
    heads, width = whole_number(config, "num_attention_heads"), whole_number(config, "hidden_size")
    return {
        "hidden_size": width,
        "intermediate_size": whole_number(config, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole_number(config, "num_key_value_heads", heads),
        "head_dim": whole_number(config, "head_dim") if config.get("head_dim") else width // heads,
        "rms_norm_eps": real_number(config, "rms_norm_eps", 1e-6),
        "rope_theta": real_number({**_rope(config), **config}, "rope_theta", 10000.0),
    }


def layer_shapes(sizes: dict[str, Any], prefix: str, wide: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors, whose attention reads `wide` times the hidden size."""
    width, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    shapes = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, wide * width),
        "self_attn.k_proj": (keys, wide * width),
        "self_attn.v_proj": (keys, wide * width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return section(config, "rope_parameters") or section(config, "rope_scaling")


def _require_plain(config: dict[str, Any]) -> None:
    """What would be computed differently must not be read as if it were not said."""
    rope = _rope(config)
    odd = {
        "rotary positions of another kind": rope.get("rope_type", rope.get("type", "default")) not in (None, "default"),
        "an activation that is not silu": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "a hidden size that is not its target's": config.get("target_hidden_size")
        not in (None, config.get("hidden_size")),
        "quantized weights": bool(config.get("quantization_config")),
        "sliding windows": bool(config.get("sliding_window")) and bool(config.get("use_sliding_window", True)),
    }
    if found := next((what for what, is_so in odd.items() if is_so), None):
        raise refused(f"has {found}, which is not supported")
