"""Medusa heads as vLLM loads them (`medusa.py`, `MedusaConfig`), the one engine of today that does.

The authors' own files (FasterDecoding/Medusa) call the same tensors `{head}.{layer}.linear.weight` and
`{head}.{layers}.weight`; vLLM calls them `blocks.{head}.layers.{layer}.weight` and `lm_heads.{head}.weight`, and so do
we. A draft vocabulary is a `token_map` of the target's ids, int64 [D]. vLLM's heads have no bias over the vocabulary.
"""

from typing import Any

import torch

from optcore.drafts.checks import refused, require_tensors, whole_number
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import RecipeError

KIND = "medusa"


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says; vLLM takes any key with `num` and `heads` or `layers` in it for one of these two."""
    names = parts.tensors.keys()
    heads = parts.count("blocks.")
    if any(f"lm_heads.{head}.weight" not in names or f"lm_heads.{head}.bias" in names for head in range(heads)):
        raise RecipeError(
            "vLLM loads Medusa heads that each have a matrix over the vocabulary, without a bias, and these do not",
            remedy="choose the method eagle3 for this model",
            field="/chain",
        )
    return {
        "architectures": ["MedusaModel"],
        "model_type": KIND,
        "base_model_name_or_path": facts.name,
        "hidden_size": parts.tensors["lm_heads.0.weight"].shape[1],
        "vocab_size": parts.vocabulary.size,
        "truncated_vocab_size": len(parts.vocabulary.ids_D),
        "num_heads": heads,
        "num_hidden_layers": parts.count("blocks.0.layers."),
        "medusa_fc_bias": "blocks.0.layers.0.bias" in names,
        "original_lm_head": False,
        "torch_dtype": "bfloat16",
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    return parts.tensors if parts.vocabulary.is_whole else {**parts.tensors, "token_map": parts.vocabulary.ids_D}


def read(config: dict[str, Any], tensors: dict[str, torch.Tensor], layers: int) -> DraftParts:
    """The parts of a draft. Raises `BadCheckpoint`."""
    if config.get("original_lm_head"):
        raise refused("has heads that share one matrix over the vocabulary, which is not supported")
    heads, depth = whole_number(config, "num_heads"), whole_number(config, "num_hidden_layers", 1)
    width, size = whole_number(config, "hidden_size"), whole_number(config, "vocab_size")
    known = whole_number(config, "truncated_vocab_size", size)
    if heads * depth > len(tensors):
        raise refused(f"has {len(tensors)} tensors, too few for {heads} heads of {depth} layers")
    held = dict(tensors)
    vocabulary = _taken_map(held, known, size)
    require_tensors(held, _shapes(heads, depth, width, known, has_biases=bool(config.get("medusa_fc_bias"))))
    return DraftParts("medusa", held, (), vocabulary, {"hidden_size": width}, tokens=heads)


def _shapes(heads: int, depth: int, width: int, known: int, *, has_biases: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for layer in range(depth):
            shapes[f"blocks.{head}.layers.{layer}.weight"] = (width, width)
            if has_biases:
                shapes[f"blocks.{head}.layers.{layer}.bias"] = (width,)
        shapes[f"lm_heads.{head}.weight"] = (known, width)
    return shapes


def _taken_map(tensors: dict[str, torch.Tensor], known: int, size: int) -> DraftVocabulary:
    ids_D = tensors.pop("token_map", None)
    if ids_D is None and known == size:
        return DraftVocabulary.whole(size)
    if ids_D is None or ids_D.dtype != torch.int64 or ids_D.shape != (known,):
        raise refused(f"knows {known} of {size} tokens and has no int64 token_map of as many")
    if not ((ids_D >= 0) & (ids_D < size)).all() or (ids_D.diff() <= 0).any():
        raise refused(f"has a token_map that leads out of the target's {size} tokens, or is out of order")
    return DraftVocabulary(ids_D, size)
