"""EAGLE-3 as vllm-project/speculators 0.9 writes it (`Eagle3SpeculatorConfig`), which vLLM loads first class.

Layers are named by their inputs, as vLLM does: its loader passes the numbers on as they are (`algos.py`). Without
`norm_before_residual` vLLM takes it as true, so it is always said. `d2t` and `t2d` are there only where the draft does
not know every token; the model has no place for them else.
"""

from typing import Any

import torch

from optcore.drafts.checks import layer_numbers, refused, whole_number
from optcore.drafts.d2t import vocabulary_tensors
from optcore.drafts.layout_eagle import IDS, OUR_LAYER, THEIR_LAYER, parts_of, require_known_norms
from optcore.drafts.llama_config import layer_config
from optcore.drafts.parts import DraftParts, TargetFacts

KIND = "speculators_model_type"
_VERSION = "0.9.0"


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says."""
    return {
        "architectures": ["Eagle3Speculator"],
        KIND: "eagle3",
        "speculators_version": _VERSION,
        "dtype": "bfloat16",
        "draft_vocab_size": len(parts.vocabulary.ids_D),
        "target_hidden_size": None,
        "norm_before_residual": bool(parts.sizes["norm_before_residual"]),
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        IDS: [tap + 1 for tap in parts.taps],
        "transformer_layer_config": layer_config(parts, facts),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": parts.tokens}],
            "verifier": {"name_or_path": facts.name, "architectures": facts.architectures},
        },
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    named = {name.replace(OUR_LAYER, THEIR_LAYER, 1): tensor for name, tensor in parts.tensors.items()}
    return named if parts.vocabulary.is_whole else {**named, **vocabulary_tensors(parts.vocabulary)}


def read(config: dict[str, Any], tensors: dict[str, torch.Tensor], layers: int) -> DraftParts:
    """The parts of a draft, for a target of so many layers. Raises `BadCheckpoint`."""
    if config[KIND] != "eagle3":
        raise refused(f"is a speculator of the kind {config[KIND]!r}, and eagle3 is read")
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, dict) or layer.get("model_type") != "llama":
        raise refused("has a transformer_layer_config that is not Llama's")
    require_known_norms(config)
    shared = ("draft_vocab_size", "target_hidden_size", "quantization_config")
    flat = {**layer, **{name: config.get(name) for name in shared}}
    flat["norm_before_residual"] = config.get("norm_before_residual", True)  # as vLLM takes it
    taps = layer_numbers(config.get(IDS) or [2, layers // 2, layers - 3], IDS, shift=-1)
    if taps[-1] >= layers:
        raise refused(f"reads the layers {list(taps)}, and its target has {layers}")
    return parts_of(flat, tensors, taps, _tokens(config))


def _tokens(config: dict[str, Any]) -> int:
    try:
        method = dict(config["speculators_config"]["proposal_methods"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        raise refused("has a speculators_config without a proposal method") from None
    return whole_number(method, "speculative_tokens")
