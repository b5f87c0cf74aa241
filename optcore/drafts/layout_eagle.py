"""EAGLE-3 as SpecForge writes it, for SGLang, vLLM and TensorRT-LLM.

Tensors are named `midlayer.*`, as in the authors' code (SafeAILab/EAGLE) and in SpecForge's export (`to_sglang.py`);
SGLang 0.5.23 and vLLM turn the name into their `layers.0.*` themselves. The target's embeddings are left out: engines
share theirs.

Which layers are read is said twice, because the same key means two things:
`eagle_config.eagle_aux_hidden_state_layer_ids` holds layers whose outputs are read (SGLang, `llama.py`, captures the
input of layer n + 1; Model Optimizer hooks layer n), and the key of that name outside holds layers whose inputs are
read (vLLM: `eagle3_utils.py` takes this one alone, and its models keep what enters layer n). TensorRT-LLM reads
neither, but `eagle3_layers_to_capture` of its own settings, which are outputs again.
"""

from typing import Any

import torch

from optcore.drafts.checks import layer_numbers, refused, require_tensors, section, whole_number
from optcore.drafts.d2t import taken_vocabulary, vocabulary_tensors
from optcore.drafts.llama_config import layer_config, layer_shapes, layer_sizes
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.errors import RecipeError

IDS = "eagle_aux_hidden_state_layer_ids"
ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
OUR_LAYER, THEIR_LAYER = "midlayer.", "layers.0."
_TOKENS = 5
"""Drafted a round where a layout does not say how many."""
_UNKNOWN = ("norm_before_fc", "fc_norm", "use_aux_norm", "norm_output")


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says."""
    require_residual_as_it_is(parts, "eagle")
    return {
        "architectures": [ARCHITECTURES[0]],
        **layer_config(parts, facts),
        "torch_dtype": "bfloat16",
        "draft_vocab_size": len(parts.vocabulary.ids_D),
        IDS: [tap + 1 for tap in parts.taps],
        "eagle_config": {"use_aux_hidden_state": True, IDS: list(parts.taps)},
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    return {**parts.tensors, **vocabulary_tensors(parts.vocabulary)}


def read(config: dict[str, Any], tensors: dict[str, torch.Tensor], layers: int) -> DraftParts:
    """The parts of a draft, for a target of so many layers. Raises `BadCheckpoint`."""
    require_known_norms(section(config, "eagle_config"))
    require_known_norms(config)
    return parts_of(config, tensors, _taps(config, layers), _TOKENS)


def parts_of(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], taps: tuple[int, ...], tokens: int
) -> DraftParts:
    """The parts of any EAGLE-3 draft whose configuration is flat."""
    if whole_number(config, "num_hidden_layers", 1) != 1:
        raise refused(f"has {config['num_hidden_layers']} layers, and EAGLE-3 drafts of one are supported")
    sizes = {**layer_sizes(config), "norm_before_residual": bool(config.get("norm_before_residual", False))}
    size = whole_number(config, "vocab_size")
    known = whole_number(config, "draft_vocab_size") if config.get("draft_vocab_size") else size
    held = {name.replace(THEIR_LAYER, OUR_LAYER, 1): tensor for name, tensor in tensors.items()}
    vocabulary = taken_vocabulary(held, known, size)
    embeddings = {name: (size, sizes["hidden_size"]) for name in ("embed_tokens.weight",) if name in held}
    require_tensors(held, {**shapes(sizes, len(taps), known), **embeddings})
    return DraftParts("eagle3", held, taps, vocabulary, sizes, tokens)


def shapes(sizes: dict[str, Any], taps: int, known: int) -> dict[str, tuple[int, ...]]:
    """Of every tensor but the vocabulary's."""
    width = sizes["hidden_size"]
    return {
        "fc.weight": (width, taps * width),
        f"{OUR_LAYER}hidden_norm.weight": (width,),
        **layer_shapes(sizes, OUR_LAYER, wide=2),
        "norm.weight": (width,),
        "lm_head.weight": (known, width),
    }


def require_residual_as_it_is(parts: DraftParts, layout: str) -> None:
    """SGLang and TensorRT-LLM add the layer to the features before their norm, whatever a configuration says."""
    if parts.sizes.get("norm_before_residual"):
        raise RecipeError(
            f"layout {layout} cannot say that the draft's layer adds to normed features",
            remedy="choose the layout speculators, which vLLM loads",
            field="/chain",
        )


def require_known_norms(config: dict[str, Any]) -> None:
    """Raise `BadCheckpoint` for a variant with more norms than the paper's."""
    if found := next((name for name in _UNKNOWN if config.get(name)), None):
        raise refused(f"says {found}, a variant of EAGLE-3 that is not supported")


def _taps(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Said inside, outside, in both places alike, or nowhere: then they are what the authors took."""
    inside, outside = section(config, "eagle_config").get(IDS), config.get(IDS)
    found = {layer_numbers(inside, f"eagle_config.{IDS}")} if inside else set()
    found |= {layer_numbers(outside, IDS, shift=-1)} if outside else set()
    if len(found) > 1:
        raise refused(f"says {inside} for layers whose outputs are read, and {outside} for those after them")
    taps = found.pop() if found else (1, layers // 2 - 1, layers - 4)
    if taps[-1] >= layers or list(taps) != sorted(set(taps)) or taps[0] < 0:
        raise refused(f"reads the layers {list(taps)}, and its target has {layers}")
    return taps
