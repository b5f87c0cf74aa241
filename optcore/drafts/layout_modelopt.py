"""EAGLE-3 as NVIDIA Model Optimizer exports it (`hf_spec_export.py`, `unified_export_megatron.py`), for TensorRT-LLM.

The same tensors as the EAGLE layout without `t2d`, and without `d2t` where the draft knows every token. In
`eagle_config` the layers whose outputs are read; they are said outside too, in vLLM's way, which would else take its
default.
"""

from typing import Any

import torch

from optcore.drafts import layout_eagle
from optcore.drafts.layout_eagle import IDS, require_residual_as_it_is
from optcore.drafts.llama_config import layer_config
from optcore.drafts.parts import DraftParts, TargetFacts

MARK = "use_last_layernorm"
"""Only its configurations say this."""


def config(parts: DraftParts, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says."""
    require_residual_as_it_is(parts, "modelopt")
    return {
        "architectures": [layout_eagle.ARCHITECTURES[0]],
        **layer_config(parts, facts),
        "torch_dtype": "bfloat16",
        "pretraining_tp": 1,
        "draft_vocab_size": len(parts.vocabulary.ids_D),
        IDS: [tap + 1 for tap in parts.taps],
        "eagle_config": {
            IDS: list(parts.taps),
            "use_aux_hidden_state": True,
            "use_input_layernorm_in_first_layer": True,
            MARK: True,
            "use_mtp_layernorm": False,
            "next_layer_regular": True,
            "parallel_draft_step": 1,
            "parallel_draft_heads_num_layers": 1,
        },
    }


def tensors(parts: DraftParts) -> dict[str, torch.Tensor]:
    """What is stored."""
    d2t = {} if parts.vocabulary.is_whole else {"d2t": parts.vocabulary.d2t_D.contiguous()}
    return {**parts.tensors, **d2t}
