"""Block drafts as the authors of DFlash and SpecForge write them (`DFlashDraftModel`), for vLLM, SGLang, TensorRT-LLM.

`dflash_config.target_layer_ids` are layers whose outputs are read: vLLM (`eagle3_utils.py`) and SGLang
(`set_dflash_layers_to_capture`) both add one to get the input they keep. `block_size` counts the chosen token too.
Embeddings and head are the target's, and so engines draft from its whole vocabulary.

A guess stands for a token that never occurs, `mask_token_id`. A draft that learned an embedding for it instead has it
as `mask_embedding`, and no engine reads that from safetensors: vLLM and SGLang want a pickled `mask_embedding.pt`.
"""

from typing import Any

import torch

from optcore.drafts.checks import layer_numbers, refused, require_tensors, section, whole_number
from optcore.drafts.llama_config import layer_config, layer_shapes, layer_sizes
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.drafts.vocabulary import DraftVocabulary

ARCHITECTURE = "DFlashDraftModel"
_OUR_MASK, _THEIR_MASK = "mask_H", "mask_embedding"
_MOST_block = 256
"""Tokens of a block, each of which takes memory at every place of a text. The authors' have 16."""


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says."""
    layers = parts.count("layers.")
    mask = {} if parts.mask_token is None else {"mask_token_id": parts.mask_token}
    return {
        "architectures": [ARCHITECTURE],
        **layer_config(parts, facts, layers),
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "layer_types": ["full_attention"] * layers,
        "sliding_window": None,
        "use_sliding_window": False,
        "block_size": parts.tokens + 1,
        "num_target_layers": facts.layers,
        "dflash_config": {**mask, "target_layer_ids": list(parts.taps)},
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    return {_THEIR_MASK if name == _OUR_MASK else name: tensor for name, tensor in parts.tensors.items()}


def read(config: dict[str, Any], tensors: dict[str, torch.Tensor], layers: int) -> DraftParts:
    """The parts of a draft, for a target of so many layers. Raises `BadCheckpoint`."""
    said = section(config, "dflash_config")
    taps = layer_numbers(said.get("target_layer_ids"), "target_layer_ids")
    if taps[-1] >= layers:
        raise refused(f"reads the layers {list(taps)}, and its target has {layers}")
    sizes, size, block = layer_sizes(config), whole_number(config, "vocab_size"), whole_number(config, "block_size")
    width, mask = sizes["hidden_size"], _mask_token(said.get("mask_token_id"), size)
    held = {_OUR_MASK if name == _THEIR_MASK else name: tensor for name, tensor in tensors.items()}
    if not 2 <= block <= _MOST_block:
        raise refused(f"says block_size: {block}, and blocks of 2 to {_MOST_block} tokens guess something")
    if mask is None and _OUR_MASK not in held:
        raise refused(f"has neither mask_token_id nor {_THEIR_MASK}: nothing stands for a guess")
    shapes = {"fc.weight": (width, len(taps) * width), "hidden_norm.weight": (width,), "norm.weight": (width,)}
    for layer in range(min(whole_number(config, "num_hidden_layers"), len(tensors))):  # fewer are a lack, found below
        shapes |= layer_shapes(sizes, f"layers.{layer}.")
        shapes |= {f"layers.{layer}.self_attn.{norm}.weight": (sizes["head_dim"],) for norm in ("q_norm", "k_norm")}
    require_tensors(held, {**shapes, **({_OUR_MASK: (width,)} if _OUR_MASK in held else {})})
    return DraftParts("block", held, taps, DraftVocabulary.whole(size), sizes, block - 1, mask)


def _mask_token(said: object, size: int) -> int | None:
    if said is None or (isinstance(said, int) and not isinstance(said, bool) and 0 <= said < size):
        return said
    raise refused(f"says mask_token_id: {said!r}, and its target knows tokens 0 to {size - 1}")
