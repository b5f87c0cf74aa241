"""Which models ONNX Runtime GenAI's builder writes so that they compute what transformers computes."""

import json
from pathlib import Path
from typing import Any

from optcore.errors import RecipeError
from optcore.frozen import Frozen


class Fit(Frozen):
    """What a family needs to hold. All were built and run; figures are in the tests of this file."""

    ropes: tuple[str, ...] = ("default", "linear")
    """Kinds of rotary position embeddings that the builder reads."""


_PLAIN = Fit()
FAMILIES: dict[str, Fit] = {
    "LlamaForCausalLM": Fit(ropes=("default", "linear", "llama3")),
    "MistralForCausalLM": _PLAIN,
    "Qwen2ForCausalLM": Fit(ropes=("default", "linear", "yarn")),
    "Qwen3ForCausalLM": Fit(ropes=("default", "linear", "yarn")),
    "Phi3ForCausalLM": Fit(ropes=("default",)),
    "PhiForCausalLM": Fit(ropes=("default",)),
    "GemmaForCausalLM": Fit(ropes=("default",)),
    "Gemma2ForCausalLM": Fit(ropes=("default",)),
    "GraniteForCausalLM": _PLAIN,
    "Ernie4_5ForCausalLM": _PLAIN,
    "HunYuanDenseV1ForCausalLM": Fit(ropes=("default",)),
    "Lfm2ForCausalLM": Fit(ropes=("default",)),
}
"""By the name of the architecture in `config.json`; version 0.18 of the builder, transformers 5.17."""

_WRONG: dict[str, str] = {
    "OlmoForCausalLM": "it leaves out what the norms of OLMo divide by: logits were 10 % off",
    "NemotronForCausalLM": "logits were 2 % off",
    "SmolLM3ForCausalLM": "it fails on layers without position embeddings",
    "Gemma3ForCausalLM": "it does not read the position embeddings of two kinds of layers",
    "GptOssForCausalLM": "it writes experts for 4 bits of its own rounding only",
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
    if kind not in FAMILIES[name].ropes:
        return f"of position embeddings it reads {' and '.join(FAMILIES[name].ropes)} here, not {kind}"
    positions = config.get("max_position_embeddings", 0)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < positions and "layer_types" not in config:
        return f"every layer sees a window of {window} of {positions} tokens, which it leaves out"
    if name == "Phi3ForCausalLM" and config.get("original_max_position_embeddings", 4096) != positions:
        return "positions beyond those of the pre-training are rescaled, which was not seen to work"
    return ""
