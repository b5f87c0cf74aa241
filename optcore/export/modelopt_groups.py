"""Linear layers that TensorRT-LLM runs as one matrix, by the names that its weight mappers look for.

Source: `tensorrt_llm/_torch/models/checkpoints/hf/weight_mapper.py` and `_torch/modules/fused_moe/` of
https://github.com/NVIDIA/TensorRT-LLM. Its loader goes by names, so this does too; what the pass shared a scale among
was found by watching the model, and is never less.
"""

import re
from collections.abc import Collection

_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
_EXPERT = re.compile(r"\.experts\.\d+\.")


def fused_group(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The layers of `known` that are one matrix with this one, itself included; itself alone where none is."""
    parent, _, leaf = name.rpartition(".")
    members = next((group for group in _FUSED if leaf in group), (leaf,))
    return tuple(full for full in (f"{parent}.{member}" for member in members) if full == name or full in known)


def experts_of(name: str) -> str:
    """The folder of experts that a layer belongs to; empty for any other layer."""
    found = _EXPERT.search(name)
    return name[: found.end() - 1].rpartition(".")[0] if found else ""
