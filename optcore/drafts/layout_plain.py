"""Our own layout, for what no engine has a public one for: a draft's tensors as they are, and what it is in words.

That is multi-token prediction today: engines load such layers only from inside the checkpoints of the families that
were trained with them, each by names of its own.
"""

from typing import Any

import torch

from optcore.drafts.checks import layer_numbers, refused, require_tensors, section, whole_number
from optcore.drafts.d2t import taken_vocabulary, vocabulary_tensors
from optcore.drafts.llama_config import layer_shapes, layer_sizes
from optcore.drafts.parts import DraftParts, TargetFacts

KEY, FORMAT = "format", "lathe-draft-1"
_METHODS = ("mtp",)
_NOTE = "No engine loads this layout; optcore reads it back. The tensors are those of the draft's state_dict."


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says."""
    return {
        KEY: FORMAT,
        "note": _NOTE,
        "method": parts.method,
        "target": facts.name,
        "taps": list(parts.taps),
        "tokens": parts.tokens,
        "vocab_size": parts.vocabulary.size,
        "draft_vocab_size": len(parts.vocabulary.ids_D),
        "sizes": parts.sizes,
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    return {**parts.tensors, **vocabulary_tensors(parts.vocabulary)}


def read(config: dict[str, Any], tensors: dict[str, torch.Tensor], layers: int) -> DraftParts:
    """The parts of a draft. Raises `BadCheckpoint`."""
    method, sizes = config.get("method"), layer_sizes(section(config, "sizes"))
    if method not in _METHODS:
        raise refused(f"says the method {method!r}, and {', '.join(_METHODS)} is what this layout holds")
    size, held = whole_number(config, "vocab_size"), dict(tensors)
    vocabulary = taken_vocabulary(held, whole_number(config, "draft_vocab_size"), size)
    require_tensors(held, _shapes(sizes))
    taps = layer_numbers(config["taps"], "taps") if config.get("taps") else ()
    return DraftParts(method, held, taps, vocabulary, sizes, whole_number(config, "tokens"))


def _shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = sizes["hidden_size"]
    norms = {f"{name}.weight": (width,) for name in ("enorm", "hnorm", "norm")}
    return {**norms, "eh_proj.weight": (width, 2 * width), **layer_shapes(sizes, "layer.")}
