"""Number formats by name: what is stored for weights, and what activations are rounded to at run time.

A new format is one entry in `PRESETS`; the maths that its arguments name lives in `algorithms/`.
"""

from math import ceil, prod
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

from optcore.frozen import Frozen

Strategy = Literal["tensor", "channel", "group", "tensor_group", "block", "token", "head"]


SUPER_BLOCK = 256
"""Values along the inputs that share the float16 scale of ggml's K-quants."""


class QuantArgs(Frozen):
    """How one kind of tensor is rounded."""

    bits: int
    type: Literal["int", "uint", "float", "nf", "iq"]
    """`nf` is the NormalFloat codebook (arXiv:2305.14314), `iq` the one of ggml's IQ4; `uint` counts up from a minimum
    that is stored beside the scale."""
    strategy: Strategy
    """Which values share a scale. `tensor_group` is NVFP4's two levels: FP8 scale a group, one float32 a tensor."""
    group_size: int | None = None
    """Values along the input dimension that share a scale."""
    block: tuple[int, int] | None = None
    """Outputs and inputs of the rectangle that shares a scale."""
    symmetric: bool = True
    """Without a zero point and without a minimum."""
    scale_type: Literal["stored", "e4m3", "e8m0", "double", "f16", "super"] = "stored"
    """What a scale is stored in: the checkpoint's own type, FP8, a power of two (OCP MX), 8 bits with a second level of
    scales (NF4's double quantization), float16 whatever the checkpoint's type, or `scale_bits` times a float16 that a
    super-block of 256 values along the inputs shares (ggml's K-quants)."""
    scale_bits: int | None = None
    """Of the scales, and of the minimums, of groups in a super-block."""
    dynamic: bool = False
    """Scales computed from each input at run time instead of calibrated."""
    outliers: float | None = None
    """Input columns with a magnitude above this stay in 16 bits (LLM.int8, arXiv:2208.07339)."""
    packed: bool = False
    """8-bit codes in 32-bit words, as kernels for 16-bit activations read them; fewer bits always are."""


class Scheme(Frozen):
    """A number format for linear layers, or for the KV cache."""

    name: str
    title: str
    """What people call it."""
    weights: QuantArgs
    activations: QuantArgs | None = None
    runs_fused: bool = True
    """Whether engines run q/k/v and gate/up as one matrix each, so that their members must have one format."""

    def bits_per_weight(self, shape_NK: tuple[int, int]) -> float:
        """Stored bits per value of a weight [N, K], scales and zero points included; scales of 16 bits where free."""
        return stored_bits(self.weights, shape_NK) / (shape_NK[0] * shape_NK[1])

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have a scale that must be measured on text."""
        if self.activations is None:
            return False
        return not self.activations.dynamic or self.activations.strategy == "tensor_group"


def scale_shape(args: QuantArgs, shape_NK: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales of a weight [N, K]."""
    rows, columns = shape_NK
    if args.strategy == "tensor":
        return (1,)
    if args.block is not None:
        return ceil(rows / args.block[0]), ceil(columns / args.block[1])
    return rows, ceil(columns / args.group_size) if args.group_size else 1


def stored_bits(args: QuantArgs, shape_NK: tuple[int, int]) -> float:
    """Bits of a stored weight [N, K]: codes, scales, zero points and second-level scales."""
    scales = prod(scale_shape(args, shape_NK))
    if args.scale_type in ("f16", "super"):
        return args.bits * prod(shape_NK) + (1 if args.symmetric else 2) * _level_bits(args, scales, shape_NK)
    scale_bits = 16.0 if args.scale_type == "stored" else 8.0
    zero_bits = 0 if args.symmetric else args.bits
    second = {"e4m3": 32, "double": 32 * ceil(scales / 256) + 32}.get(args.scale_type, 0)
    return args.bits * prod(shape_NK) + scales * (scale_bits + zero_bits) + second


def _level_bits(args: QuantArgs, scales: int, shape_NK: tuple[int, int]) -> float:
    """Bits of all scales of a block format, or of as many minimums."""
    if args.scale_bits is None:
        return 16 * scales
    return args.scale_bits * scales + 16 * prod(shape_NK) / SUPER_BLOCK


def _args(
    bits: int, type_: Literal["int", "uint", "float", "nf", "iq"], strategy: Strategy, **more: object
) -> QuantArgs:
    return QuantArgs.model_validate({"bits": bits, "type": type_, "strategy": strategy, **more})


def _ggml() -> list[Scheme]:
    """The block formats of ggml that GGUF files hold: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h."""
    blocks: dict[str, QuantArgs] = {
        "q8_0": _args(8, "int", "group", group_size=32, scale_type="f16"),
        "q5_0": _args(5, "int", "group", group_size=32, scale_type="f16"),
        "q5_1": _args(5, "uint", "group", group_size=32, scale_type="f16", symmetric=False),
        "q4_0": _args(4, "int", "group", group_size=32, scale_type="f16"),
        "q4_1": _args(4, "uint", "group", group_size=32, scale_type="f16", symmetric=False),
        "iq4_nl": _args(4, "iq", "group", group_size=32, scale_type="f16"),
        "q6_k": _args(6, "int", "group", group_size=16, scale_type="super", scale_bits=8),
        "q5_k": _args(5, "uint", "group", group_size=32, scale_type="super", scale_bits=6, symmetric=False),
        "q4_k": _args(4, "uint", "group", group_size=32, scale_type="super", scale_bits=6, symmetric=False),
        "iq4_xs": _args(4, "iq", "group", group_size=32, scale_type="super", scale_bits=6),
        "q3_k": _args(3, "int", "group", group_size=16, scale_type="super", scale_bits=6),
        "q2_k": _args(2, "uint", "group", group_size=16, scale_type="super", scale_bits=4, symmetric=False),
    }
    return [
        Scheme(name=name, title=f"GGUF {name.upper()}", weights=args, runs_fused=False) for name, args in blocks.items()
    ]


def _dynamic(args: QuantArgs) -> QuantArgs:
    return args.model_copy(update={"dynamic": True})


_FP8_TENSOR = _args(8, "float", "tensor")
_FP8_TOKEN = _args(8, "float", "token", dynamic=True)
_FP8_BLOCK = _args(8, "float", "block", block=(128, 128))
_INT8_CHANNEL = _args(8, "int", "channel")
_NVFP4 = _args(4, "float", "tensor_group", group_size=16, scale_type="e4m3")
_MXFP4 = _args(4, "float", "group", group_size=32, scale_type="e8m0")
_MXFP8 = _args(8, "float", "group", group_size=32, scale_type="e8m0")


def _integers() -> list[Scheme]:
    """Weight-only integers in groups: `int4` alone is the width that every engine reads, groups of 128."""
    schemes = []
    for bits, sizes in ((4, (128, 64, 32)), (3, (128, 64, 32)), (2, (64, 32, 16))):
        for size in sizes:
            for symmetric in (True, False):
                kind = "" if symmetric else "_asym"
                width = "" if size == sizes[0] else f"_g{size}"
                title = f"INT{bits} W{bits}A16, groups of {size}" + ("" if symmetric else ", with zero points")
                weights = _args(bits, "int", "group", group_size=size, symmetric=symmetric)
                schemes.append(Scheme(name=f"int{bits}{kind}{width}", title=title, weights=weights))
    return schemes


_SCHEMES = (
    Scheme(name="fp8", title="FP8 E4M3 W8A8, per tensor", weights=_FP8_TENSOR, activations=_FP8_TENSOR),
    Scheme(
        name="fp8_dynamic",
        title="FP8 E4M3 W8A8, per channel and per token",
        weights=_args(8, "float", "channel"),
        activations=_FP8_TOKEN,
    ),
    Scheme(
        name="fp8_block",
        title="FP8 E4M3 W8A8, blocks of 128x128 and 1x128",
        weights=_FP8_BLOCK,
        activations=_args(8, "float", "group", group_size=128, dynamic=True),
    ),
    Scheme(name="fp8_block_w8a16", title="FP8 E4M3 W8A16, blocks of 128x128", weights=_FP8_BLOCK),
    Scheme(
        name="int8",
        title="INT8 W8A8, per channel and per token",
        weights=_INT8_CHANNEL,
        activations=_args(8, "int", "token", dynamic=True),
    ),
    Scheme(
        name="int8_static",
        title="INT8 W8A8, per channel and per tensor",
        weights=_INT8_CHANNEL,
        activations=_args(8, "int", "tensor"),
    ),
    Scheme(name="int8_w8a16", title="INT8 W8A16, per channel", weights=_args(8, "int", "channel", packed=True)),
    Scheme(
        name="llm_int8",
        title="LLM.int8: INT8 W8A8 with outlier columns in 16 bits",
        weights=_INT8_CHANNEL,
        activations=_args(8, "int", "token", dynamic=True, outliers=6.0),
    ),
    *_integers(),
    Scheme(
        name="int4_fp8",
        title="W4A8: INT4 weights in groups of 128, FP8 activations per token",
        weights=_args(4, "int", "group", group_size=128),
        activations=_FP8_TOKEN,
    ),
    Scheme(
        name="int4_fp8_static",
        title="W4A8: INT4 weights in groups of 128, FP8 activations per tensor",
        weights=_args(4, "int", "group", group_size=128),
        activations=_FP8_TENSOR,
    ),
    Scheme(name="nvfp4", title="NVFP4 W4A4, blocks of 16", weights=_NVFP4, activations=_dynamic(_NVFP4)),
    Scheme(name="nvfp4_w4a16", title="NVFP4 W4A16, blocks of 16", weights=_NVFP4),
    Scheme(name="mxfp4", title="MXFP4 W4A4, blocks of 32", weights=_MXFP4, activations=_dynamic(_MXFP4)),
    Scheme(name="mxfp4_w4a16", title="MXFP4 W4A16, blocks of 32", weights=_MXFP4),
    Scheme(name="mxfp8", title="MXFP8 W8A8, blocks of 32", weights=_MXFP8, activations=_dynamic(_MXFP8)),
    Scheme(
        name="nf4",
        title="NF4 W4A16, groups of 64, double quantization",
        weights=_args(4, "nf", "group", group_size=64, scale_type="double"),
    ),
    *_ggml(),
)
GGML_FORMATS: frozenset[str] = frozenset(scheme.name for scheme in _ggml())
"""Names of the formats that only GGUF files hold."""

HIGH_PRECISION_bits = 16
"""What a weight takes that is left alone."""

PRESETS: dict[str, Scheme] = {scheme.name: scheme for scheme in _SCHEMES}

KV_CACHE_PRESETS: dict[str, QuantArgs] = {
    "fp8": _FP8_TENSOR,
    "fp8_head": _args(8, "float", "head"),
    "nvfp4": _dynamic(_NVFP4),
    "nvfp4_affine": _NVFP4.model_copy(update={"dynamic": True, "symmetric": False}),
    "int8": _args(8, "int", "token", dynamic=True),
    "int4": _args(4, "int", "group", group_size=32, symmetric=False, dynamic=True),
}


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
