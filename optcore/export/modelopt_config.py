"""How Model Optimizer describes a checkpoint: one set of facts, spelled in two ways.

vLLM reads `config.json` and falls back to `hf_quant_config.json`; TensorRT-LLM trusts the latter. Both are made here.
"""

from collections import defaultdict
from typing import Any

from optcore.quantization import Quantization

_AWQ = {"group_size": 128, "has_zero_point": False, "pre_quant_scale": True}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_algo": "FP8"},
    "fp8_dynamic": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
    "fp8_block": {"quant_algo": "fp8_pb_wo"},  # in small letters: TensorRT-LLM knows no other spelling
    "nvfp4": {"quant_algo": "NVFP4", "group_size": 16},
    "nvfp4_w4a16": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    "int4": {"quant_algo": "W4A16_AWQ", **_AWQ},
    "int4_fp8_static": {"quant_algo": "W4A8_AWQ", **_AWQ},
}
_KV_CACHES = {"fp8": "FP8", "nvfp4": "NVFP4", "nvfp4_affine": "NVFP4_AFFINE"}
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}  # the release whose layout this is; engines look at the name
_FP8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_GROUPS: dict[str, dict[str, Any]] = {
    "fp8": {"weights": _FP8, "input_activations": _FP8},
    "fp8_dynamic": {"weights": _FP8 | {"strategy": "channel"}, "input_activations": _FP8},
    "nvfp4": {
        "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
        "input_activations": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
    },
    "nvfp4_w4a16": {"weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}},
    "int4": {"weights": {"dynamic": False, "num_bits": 4, "type": "int", "group_size": 128}},
}


def hf_quant_config(description: Quantization) -> dict[str, Any]:
    """The content of `hf_quant_config.json`."""
    cache = _KV_CACHES[description.kv_cache] if description.kv_cache else None
    return {
        "producer": _PRODUCER,
        "quantization": {
            **_algorithm(description),
            "kv_cache_quant_algo": cache,
            "exclude_modules": _left(description),
        },
    }


def quantization_config(description: Quantization) -> dict[str, Any]:
    """The `quantization_config` of `config.json`."""
    nested = hf_quant_config(description)["quantization"]
    cache = nested.pop("kv_cache_quant_algo")
    flat = {"quant_method": "modelopt", "producer": _PRODUCER, "ignore": nested.pop("exclude_modules"), **nested}
    if groups := _groups(description):
        flat["config_groups"] = groups
    if cache:
        flat["kv_cache_scheme"] = _FP8 if cache == "FP8" else cache
    return flat


def _algorithm(description: Quantization) -> dict[str, Any]:
    if not description.schemes:
        return {"quant_algo": None}  # a KV cache alone
    if len(description.schemes) == 1:
        return ALGORITHMS[description.schemes[0].name]
    # Every module by its name: a member of a fused matrix that is not listed is guessed, and read wrongly.
    layers = {name: ALGORITHMS[linear.scheme] for name, linear in description.linears.items()}
    return {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def _groups(description: Quantization) -> dict[str, Any]:
    """Formats as compressed-tensors would spell them; layers by name where there are several."""
    targets = defaultdict(list)
    for name, linear in description.linears.items():
        targets[linear.scheme].append(name)
    groups = [
        {**_GROUPS[scheme], "targets": names if len(targets) > 1 else ["Linear"]}
        for scheme, names in targets.items()
        if scheme in _GROUPS
    ]
    return {f"group_{number}": group for number, group in enumerate(groups)}


def _left(description: Quantization) -> list[str]:
    return sorted({"lm_head", *description.ignored})  # a tied head has no tensor of its own
