"""`quantization_config` of a compressed-tensors checkpoint: what engines read to know the bytes."""

from typing import Any

from optcore.quantization import Quantization
from optcore.schemes import QuantArgs

_FORMATS = {("float", 8): "float-quantized", ("int", 8): "int-quantized", ("int", 4): "pack-quantized"}


def quantization_config(description: Quantization) -> dict[str, Any]:
    """The dictionary for `config.json`, one group for all quantized layers."""
    scheme = description.preset
    kv_cache = description.kv_preset
    layout = _FORMATS.get((scheme.weights.type, scheme.weights.bits), "nvfp4-pack-quantized")
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _arguments(scheme.weights, activation=False),
                "input_activations": _arguments(scheme.activations, activation=True) if scheme.activations else None,
                "output_activations": None,
                "format": layout,
            }
        },
        "ignore": sorted({"lm_head", *description.ignored}),  # a tied head has no tensor of its own
        "kv_cache_scheme": _arguments(kv_cache, activation=True) if kv_cache else None,
    }


def _arguments(args: QuantArgs, *, activation: bool) -> dict[str, Any]:
    """One tensor kind in the library's words. NVFP4's block scales of activations are `local`: made from each input."""
    two_level = args.strategy == "tensor_group"
    return {
        "num_bits": args.bits,
        "type": args.type,
        "symmetric": True,
        "strategy": args.strategy,
        "group_size": args.group_size,
        "dynamic": "local" if two_level and activation else args.dynamic,
        **({"scale_dtype": "torch.float8_e4m3fn"} if two_level else {}),
    }
