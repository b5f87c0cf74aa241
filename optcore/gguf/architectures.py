"""The architectures that GGUF files are written for: what llama.cpp calls them, and what it takes for granted in them.

llama.cpp builds a graph of its own for each of its architectures, and much that transformers reads from `config.json`
is fixed there. A model that says otherwise would load and compute something else, so it is refused.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from optcore.errors import RecipeError

Config = Mapping[str, Any]


class Fixed(NamedTuple):
    """A number or name in `config.json` that llama.cpp does not read."""

    value: object
    absent: object
    """What transformers takes it for when the configuration is silent."""


_SILU = {"hidden_act": Fixed("silu", "silu")}
_GELU = {"hidden_activation": Fixed("gelu_pytorch_tanh", "gelu_pytorch_tanh")}
_EVERY_LAYER = {"decoder_sparse_step": Fixed(1, 1), "mlp_only_layers": Fixed([], [])}


class Architecture(NamedTuple):
    """One of llama.cpp's architectures, for one class of transformers."""

    name: str
    """`general.architecture`, by which also gguf's map of tensor names is found."""
    fixed: Mapping[str, Fixed] = _SILU
    rotates_neighbours: bool = False
    """Rotary positions turn values 2 i and 2 i + 1 of a head, not i and i + half: rows of q and k are reordered."""
    norms_from_one: bool = False
    """Norms multiply by 1 + weight; the file has the sum."""
    windows: bool = False
    """Layers alternate between a sliding window and everything, as llama.cpp's graph does."""


_LLAMA = Architecture("llama", rotates_neighbours=True)
_GEMMA = Architecture("gemma2", _GELU, norms_from_one=True, windows=True)
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen2MoeForCausalLM": Architecture("qwen2moe", {**_SILU, **_EVERY_LAYER, "norm_topk_prob": Fixed(False, False)}),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Qwen3MoeForCausalLM": Architecture("qwen3moe", {**_SILU, **_EVERY_LAYER, "norm_topk_prob": Fixed(True, False)}),
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": _GEMMA._replace(name="gemma3"),
    "Phi3ForCausalLM": Architecture("phi3"),
    "Olmo2ForCausalLM": Architecture("olmo2"),
}
SLIDING_every = {"gemma2": 2, "gemma3": 6}
"""One layer in so many attends to everything."""
_WIDE_LAYERS = {"gemma2": 46, "gemma3": 62}
"""Layers of the models whose queries are divided by the root of hidden size / heads instead of the head's width."""


def architecture_of(config: Config, field: str) -> Architecture:
    """llama.cpp's architecture for a model. Raises `RecipeError` where there is none that computes the same."""
    named = [str(name) for name in config.get("architectures") or ()]
    name = next((name for name in named if name in ARCHITECTURES), "")
    if not name:
        raise _refused(f"{' or '.join(named) or 'a model without `architectures`'} is not written as GGUF", field)
    architecture = ARCHITECTURES[name]
    for key, fixed in architecture.fixed.items():
        if (said := config.get(key, fixed.absent)) != fixed.value and said is not None:
            raise _refused(f"llama.cpp computes {name} with {key} {fixed.value}, and the model has {said}", field)
    if architecture.windows:
        _check_gemma(config, architecture.name, field)
    return architecture


def head_width(config: Config) -> int:
    """Values in a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def expert_count(config: Config) -> int | None:
    """Routed experts of a layer."""
    found = config.get("num_local_experts") or config.get("num_experts")
    return int(found) if found else None


def ignored_window(config: Config, architecture: Architecture) -> int | None:
    """The sliding window that transformers would apply and llama.cpp does not; None where they agree."""
    window = config.get("sliding_window")
    if architecture.windows or not window or config.get("use_sliding_window") is False:
        return None
    return int(window) if window < config["max_position_embeddings"] else None


def _check_gemma(config: Config, name: str, field: str) -> None:
    every, layers = SLIDING_every[name], int(config["num_hidden_layers"])
    pattern = ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(layers)]
    if config.get("layer_types", pattern) != pattern:
        raise _refused(f"llama.cpp lets every {every}th layer of {name} attend to everything, not `layer_types`", field)
    heads = config["num_attention_heads"]
    width = config["hidden_size"] / heads if layers == _WIDE_LAYERS[name] else head_width(config)
    if (scalar := config.get("query_pre_attn_scalar", 256)) != width:
        raise _refused(f"llama.cpp divides queries of {name} by the root of {width}, and the model has {scalar}", field)
    if name == "gemma3" and (config.get("final_logit_softcapping") or config.get("attn_logit_softcapping")):
        raise _refused(f"llama.cpp caps no logits of {name}, and the model does", field)


def _refused(message: str, field: str) -> RecipeError:
    known = ", ".join(name.removesuffix("ForCausalLM") for name in ARCHITECTURES)
    return RecipeError(
        message,
        remedy=f"GGUF is written for {known}; for this model choose `compressed-tensors` or `dense`, "
        "and convert it with llama.cpp's own script",
        field=field,
    )
