"""What TensorRT-LLM reads of a linear layer, by the algorithm that a Model Optimizer checkpoint names.

Read in `tensorrt_llm/_torch/modules/linear.py` (`create_weights` and `load_weight_scales` of each linear method) and
`_torch/modules/fused_moe/quantization.py` of https://github.com/NVIDIA/TensorRT-LLM. Shapes: N outputs, K inputs, G
values in a group.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]
MODEL = "model"
"""Stands for the model's own type, as its `config.json` names it."""


class Stored(NamedTuple):
    """One tensor of a linear layer."""

    dtype: str
    """As safetensors spells it."""
    shape: Callable[[int, int, int], Shape]
    """From N, K and G."""


class LinearLayout(NamedTuple):
    """The tensors of a linear layer besides its bias."""

    tensors: Mapping[str, Stored]
    packing: tuple[int, int] = (1, 1)
    """Outputs and inputs that share an octet of the weight."""
    group: int = 1
    """Values along the inputs that share a scale, which K must be a multiple of."""
    block: int = 1
    """Outputs that share one, which N must be a multiple of."""
    shared: tuple[str, ...] = ()
    """Scales that the loader asserts to be the same in all layers that it fuses."""
    signed: tuple[str, ...] = ()
    """Scales that may be negative: an integer that reaches one further below zero than above it uses that."""


def _scalar(_rows: int, _columns: int, _group: int) -> Shape:
    return ()


_SCALAR = Stored("F32", _scalar)
_FP8 = Stored("F8_E4M3", lambda n, k, g: (n, k))
_NVFP4 = {
    "weight": Stored("U8", lambda n, k, g: (n, k // 2)),
    "weight_scale": Stored("F8_E4M3", lambda n, k, g: (n, k // g)),
    "weight_scale_2": _SCALAR,
}
_AWQ = {
    "weight": Stored("U8", lambda n, k, g: (n // 2, k)),
    "weight_scale": Stored("F32", lambda n, k, g: (n, k // g)),
    "pre_quant_scale": Stored(MODEL, lambda n, k, g: (k,)),
}
_JOINT = ("weight_scale_2", "input_scale")

LAYOUTS: dict[str, LinearLayout] = {
    "FP8": LinearLayout({"weight": _FP8, "weight_scale": _SCALAR, "input_scale": _SCALAR}),
    "FP8_PER_CHANNEL_PER_TOKEN": LinearLayout({"weight": _FP8, "weight_scale": Stored("F32", lambda n, k, g: (n,))}),
    "fp8_pb_wo": LinearLayout(
        {"weight": _FP8, "weight_scale": Stored("F32", lambda n, k, g: (n // g, 1, k // g, 1))}, group=128, block=128
    ),
    "NVFP4": LinearLayout({**_NVFP4, "input_scale": _SCALAR}, (1, 2), 16, shared=_JOINT),
    "W4A16_NVFP4": LinearLayout(_NVFP4, (1, 2), 16, shared=_JOINT),
    "W4A16_AWQ": LinearLayout(_AWQ, (2, 1), 128, signed=("weight_scale",)),
    "W4A8_AWQ": LinearLayout(
        {**_AWQ, "weight_scale_2": _SCALAR, "input_scale": _SCALAR},
        (2, 1),
        128,
        shared=_JOINT,
        signed=("weight_scale",),
    ),
}
"""By `quant_algo`, in its very spelling: TensorRT-LLM turns it into an enumeration, and refuses any other."""
SCALES = frozenset(suffix for layout in LAYOUTS.values() for suffix in layout.tensors if suffix != "weight")
KV_ALGORITHMS = ("FP8", "NVFP4", "NVFP4_AFFINE")
