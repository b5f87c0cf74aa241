"""Number formats by name: what is stored for weights, and what activations are rounded to at run time.

A new format is one entry in `PRESETS`; the maths that its arguments name lives in `algorithms/`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

from optcore.frozen import Frozen

Strategy = Literal["tensor", "channel", "group", "tensor_group", "token"]


class QuantArgs(Frozen):
    """How one kind of tensor is rounded."""

    bits: int
    type: Literal["int", "float"]
    strategy: Strategy
    """Which values share a scale. `tensor_group` is NVFP4's two levels: FP8 scale a group, one float32 a tensor."""
    group_size: int | None = None
    """Values along the input dimension that share a scale."""
    dynamic: bool = False
    """Scales computed from each input at run time instead of calibrated."""


class Scheme(Frozen):
    """A number format for linear layers, or for the KV cache."""

    name: str
    title: str
    """What people call it."""
    weights: QuantArgs
    activations: QuantArgs | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have a scale that must be measured on text."""
        if self.activations is None:
            return False
        return not self.activations.dynamic or self.activations.strategy == "tensor_group"


_FP8_TENSOR = QuantArgs(bits=8, type="float", strategy="tensor")
_NVFP4 = QuantArgs(bits=4, type="float", strategy="tensor_group", group_size=16)

PRESETS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp8", title="FP8 E4M3 W8A8, per tensor", weights=_FP8_TENSOR, activations=_FP8_TENSOR),
        Scheme(
            name="fp8_dynamic",
            title="FP8 E4M3 W8A8, per channel and per token",
            weights=QuantArgs(bits=8, type="float", strategy="channel"),
            activations=QuantArgs(bits=8, type="float", strategy="token", dynamic=True),
        ),
        Scheme(
            name="int8",
            title="INT8 W8A8, per channel and per token",
            weights=QuantArgs(bits=8, type="int", strategy="channel"),
            activations=QuantArgs(bits=8, type="int", strategy="token", dynamic=True),
        ),
        Scheme(
            name="int4",
            title="INT4 W4A16, groups of 128",
            weights=QuantArgs(bits=4, type="int", strategy="group", group_size=128),
        ),
        Scheme(
            name="nvfp4",
            title="NVFP4 W4A4, blocks of 16",
            weights=_NVFP4,
            activations=_NVFP4.model_copy(update={"dynamic": True}),
        ),
        Scheme(name="nvfp4_w4a16", title="NVFP4 W4A16, blocks of 16", weights=_NVFP4),
    )
}

KV_CACHE_PRESETS: dict[str, QuantArgs] = {"fp8": _FP8_TENSOR}


def _known(presets: dict[str, Scheme] | dict[str, QuantArgs], value: str) -> str:
    if value not in presets:
        raise ValueError(f"unknown format {value!r}; known are {', '.join(presets)}")
    return value


SchemeName = Annotated[
    str,
    AfterValidator(lambda value: _known(PRESETS, value)),
    WithJsonSchema({"type": "string", "enum": list(PRESETS)}),
]
KvCacheName = Annotated[
    str,
    AfterValidator(lambda value: _known(KV_CACHE_PRESETS, value)),
    WithJsonSchema({"type": "string", "enum": list(KV_CACHE_PRESETS)}),
]
