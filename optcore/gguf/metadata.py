"""What a GGUF file says of a model: its `config.json` in llama.cpp's keys.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Mapping
from typing import Any

import gguf

from optcore.gguf.architectures import Architecture, Config, SLIDING_every, expert_count, head_width
from optcore.gguf.rope import rope_of


def add_metadata(writer: gguf.GGUFWriter, config: Config, architecture: Architecture, field: str) -> None:
    """Add every key that llama.cpp needs to build the model."""
    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    _add_attention(writer, config, architecture)
    _add_rope(writer, rope_of(config, field), config)
    if architecture.name == "gemma3":
        writer.add_rope_freq_base_swa(_window_base(config, field))
    if count := expert_count(config):
        _add_experts(writer, config, count)


def _add_attention(writer: gguf.GGUFWriter, config: Config, architecture: Architecture) -> None:
    heads = int(config["num_attention_heads"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    if architecture.name in SLIDING_every:
        writer.add_sliding_window(int(config["sliding_window"]))
    elif architecture.name == "phi3":  # llama.cpp asks for it, and lets all layers attend to everything
        writer.add_sliding_window(int(config.get("sliding_window") or 0))
    if limit := config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(limit))
    if limit := config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(limit))


def _add_rope(writer: gguf.GGUFWriter, rope: Mapping[str, Any], config: Config) -> None:
    writer.add_rope_dimension_count(head_width(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(int(trained))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _window_base(config: Config, field: str) -> float:
    if "rope_parameters" in config:
        return float(rope_of(config, field, "sliding_attention")["rope_theta"])
    return float(config.get("rope_local_base_freq") or 10_000.0)


def _add_experts(writer: gguf.GGUFWriter, config: Config, count: int) -> None:
    writer.add_expert_count(count)
    writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    if width := config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(int(width))
    if width := config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(width))
