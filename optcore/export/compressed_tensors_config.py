"""`quantization_config` of a compressed-tensors checkpoint: what engines read to know the bytes."""

import re
from typing import Any

from optcore.quantization import Quantization
from optcore.schemes import QuantArgs, Scheme

_SCALE_TYPES = {"e4m3": "torch.float8_e4m3fn", "e8m0": "torch.uint8"}


def quantization_config(description: Quantization) -> dict[str, Any]:
    """The dictionary for `config.json`: one group of layers for each number format."""
    schemes, kv_cache = description.schemes, description.kv_preset
    is_mixed = len(schemes) > 1
    groups = {
        f"group_{number}": _group(scheme, _targets(description, scheme) if is_mixed else ["Linear"])
        for number, scheme in enumerate(schemes)
    }
    layouts = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if is_mixed else layouts.pop() if layouts else "dense",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": sorted({"lm_head", *description.ignored}),  # a tied head has no tensor of its own
        "kv_cache_scheme": _arguments(kv_cache, activation=True) if kv_cache else None,
    }


def layout_of(scheme: Scheme) -> str:
    """The library's name for how a scheme's bytes lie."""
    weights = scheme.weights
    if weights.type == "int":
        return "int-quantized" if weights.bits == 8 and scheme.activations else "pack-quantized"
    if weights.scale_type == "e8m0":
        return "mxfp8-quantized" if weights.bits == 8 else "mxfp4-pack-quantized"
    return "float-quantized" if weights.bits == 8 else "nvfp4-pack-quantized"


def _targets(description: Quantization, scheme: Scheme) -> list[str]:
    """Exact names, experts as one expression a layer and projection: a list of thousands would be read for each."""
    names = description.modules_of(scheme.name)
    return sorted({_pattern(name) if ".experts." in name else name for name in names})


def _pattern(name: str) -> str:
    before, after = re.split(r"\.experts\.\d+\.", name)
    return rf"re:^{re.escape(before)}\.experts\.\d+\.{re.escape(after)}$"


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": _arguments(scheme.weights, activation=False),
        "input_activations": _arguments(scheme.activations, activation=True) if scheme.activations else None,
        "output_activations": None,
        "format": layout_of(scheme),
    }


def _arguments(args: QuantArgs, *, activation: bool) -> dict[str, Any]:
    """One tensor kind in the library's words. NVFP4's block scales of activations are `local`: made from each input."""
    two_level = args.strategy == "tensor_group"
    scale_type = _SCALE_TYPES.get(args.scale_type)
    return {
        "num_bits": args.bits,
        "type": args.type,
        "symmetric": args.symmetric,
        "strategy": "attn_head" if args.strategy == "head" else args.strategy,
        "group_size": args.group_size,
        "dynamic": "local" if two_level and activation else args.dynamic,
        **({"block_structure": list(args.block)} if args.block else {}),
        **({"scale_dtype": scale_type} if scale_type else {}),
    }
