"""Rotary positions as `config.json` says them, and which of them GGUF can say."""

import math
from collections.abc import Mapping
from typing import Any

from optcore.errors import RecipeError
from optcore.gguf.architectures import Config

KINDS = ("default", "linear", "yarn", "llama3")


def rope_of(config: Config, field: str, layers: str = "full_attention") -> Mapping[str, Any]:
    """The parameters of rotary positions: `rope_type`, `rope_theta` and what belongs to the type.

    Reads what transformers writes since 5.0 (`rope_parameters`, by kind of layer in Gemma 3) and what it wrote before.
    Raises `RecipeError` for a kind that llama.cpp computes otherwise or not at all.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope = dict(rope.get(layers) or ()) if "full_attention" in rope else rope
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    rope |= {"rope_type": kind, "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)}
    if kind not in KINDS:
        raise _refused(f"rotary positions of kind {kind!r} are not written as GGUF; {', '.join(KINDS)} are", field)
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1.0):
        raise _refused("only a part of each head is rotated, which is not written as GGUF", field)
    if kind == "yarn":
        _check_yarn(rope, field)
    return rope


def _check_yarn(rope: Mapping[str, Any], field: str) -> None:
    """llama.cpp multiplies by 0.1 ln(factor) + 1, and reads no other number for it."""
    usual = 0.1 * math.log(float(rope["factor"])) + 1.0
    said = rope.get("attention_factor")
    if (said is not None and abs(float(said) - usual) > 1e-6) or rope.get("mscale") or rope.get("mscale_all_dim"):
        raise _refused("YaRN with an attention factor of its own is not written as GGUF", field)
    if rope.get("truncate") is False:
        raise _refused("YaRN without rounding of its correction range is not written as GGUF", field)


def _refused(message: str, field: str) -> RecipeError:
    return RecipeError(
        message, remedy="choose `compressed-tensors`, or convert with llama.cpp's own script", field=field
    )
