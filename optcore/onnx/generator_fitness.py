"""Which models ONNX Runtime GenAI's builder writes so that they compute what transformers computes."""

import json
from pathlib import Path
from typing import Any

from optcore.errors import RecipeError

_PLAIN, _SCALED = ("default",), ("default", "linear")
FAMILIES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": ("default", "llama3"),
    "MistralForCausalLM": _SCALED,
    "Qwen2ForCausalLM": _SCALED,
    "Qwen3ForCausalLM": _PLAIN,
    "Phi3ForCausalLM": _PLAIN,
    "PhiForCausalLM": _PLAIN,
    "GemmaForCausalLM": _PLAIN,
    "Gemma2ForCausalLM": _PLAIN,
    "GraniteForCausalLM": _SCALED,
    "Ernie4_5ForCausalLM": _SCALED,
    "HunYuanDenseV1ForCausalLM": _PLAIN,
    "Lfm2ForCausalLM": _PLAIN,
}
"""Architectures by their name in `config.json`, with the kinds of rotary position embeddings that come out right.

Each was built by ONNX Runtime GenAI 0.18, with transformers 5.17, and run beside transformers. Its builder reads more
kinds, and gets some wrong: linear scaling of Llama, YaRN of Qwen.
"""

_WRONG: dict[str, str] = {
    "OlmoForCausalLM": "logits came out 10 % off",
    "NemotronForCausalLM": "logits came out 2 % off",
    "SmolLM3ForCausalLM": "it fails on layers without position embeddings",
    "Gemma3ForCausalLM": "it does not read the position embeddings of two kinds of layers",
}
_WAY_OUT = "choose `target: {format: gguf}`, or `compressed-tensors`"


def check_generator(folder: Path, place: str) -> None:
    """Raises `RecipeError` for a model whose graph the builder does not write, or writes wrong."""
    config = json.loads((folder / "config.json").read_text())
    name = next(iter(config.get("architectures") or ["a model without `architectures` in config.json"]))
    if reason := _reason(name, config):
        raise RecipeError(
            f"ONNX Runtime GenAI's builder cannot write {name}: {reason}", remedy=_WAY_OUT, field=f"{place}/format"
        )


def _reason(name: str, config: dict[str, Any]) -> str:
    """Why not; empty where nothing is in the way."""
    if name in _WRONG:
        return _WRONG[name]
    if name not in FAMILIES:
        return f"it knows {', '.join(FAMILIES)}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in FAMILIES[name]:
        return f"of position embeddings it reads {' and '.join(FAMILIES[name])} here, not {kind}"
    positions = config.get("max_position_embeddings", 0)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < positions and "layer_types" not in config:
        return f"every layer sees a window of {window} of {positions} tokens, which it leaves out"
    if name == "Phi3ForCausalLM" and config.get("original_max_position_embeddings", 4096) != positions:
        return "positions beyond those of the pre-training are rescaled, which was not seen to work"
    return ""
