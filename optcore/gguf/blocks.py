"""Codes and scales to the bytes of ggml's blocks of 32, and of 64 (NVFP4).

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. A block's scales come first, then its codes; of
two codes in a byte the low one stands half a block before the high one. Blocks of 256 are in `super_blocks`.

Shape suffixes: N outputs, K inputs, B blocks of a whole weight (N * K / block), G groups of a row.
"""

from collections.abc import Callable

import numpy as np
import torch

from optcore.algorithms.scales import Scales
from optcore.errors import RecipeError
from optcore.export.raw_reader import Array
from optcore.gguf.nibbles import nibbles
from optcore.gguf.super_blocks import ENCODERS as SUPER_ENCODERS
from optcore.schemes import GGML_FORMATS, PRESETS

_BLOCK = 32
TYPES: dict[str, str] = {
    **{name: name.upper() for name in ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl", "iq4_xs")},
    **{f"q{bits}_k": f"Q{bits}_K" for bits in (2, 3, 4, 5, 6)},
    **dict.fromkeys(("int4", "int4_g64", "int4_g32"), "Q4_0"),
    **dict.fromkeys(("int4_asym", "int4_asym_g64", "int4_asym_g32"), "Q4_1"),
    "int8_w8a16": "Q8_0",
    "mxfp4_w4a16": "MXFP4",
    "nvfp4_w4a16": "NVFP4",
}
"""ggml's type that holds the codes of a scheme."""


def encode_blocks(scheme: str, codes_NK: torch.Tensor, scales: Scales) -> Array:
    """A weight's rows as ggml stores them, uint8 [N, bytes of a row]. Raises `RecipeError` for a scale beyond float16.

    Codes are int8, or uint8 in formats that count from 0 or number a table's entries.
    """
    return _ENCODERS[TYPES[scheme]](codes_NK.numpy(), scales).reshape(len(codes_NK), -1)


def rounding(scheme: str, scales: Scales) -> Array | None:
    """How far a weight decoded from blocks may be from the simulated one, float64 [N, G]; None where it is the same.

    A bfloat16 scale is a float16 number, unless it is tiny. The minimum that a zero point becomes has up to four bits
    more than its scale, and float16 may lack them. NVFP4 is not rounded, but multiplied in another order: by the
    reciprocal of the tensor's scale, at the end.
    """
    if TYPES[scheme] == "NVFP4":
        return np.zeros((1, 1))
    if scheme in GGML_FORMATS or not scales.scale.dtype.is_floating_point:
        return None
    step_NG = _floats(scales.scale).astype(np.float64)
    error_NG = _half_error(step_NG) * 2 ** PRESETS[scheme].weights.bits
    if scales.zero_point is not None:
        error_NG = error_NG + _half_error(_offsets(scales))
    return error_NG if error_NG.any() else None


def second_scale(scales: Scales) -> float:
    """NVFP4's factor of a whole tensor, which llama.cpp multiplies a layer's output by."""
    assert scales.global_scale is not None
    return 1.0 / float(scales.global_scale.float().item())


def _q8_0(codes_NK: Array, scales: Scales) -> Array:
    return _joined(_steps(codes_NK, scales), _blocks(codes_NK).view(np.uint8))


def _q4_0(codes_NK: Array, scales: Scales) -> Array:
    return _joined(_steps(codes_NK, scales), nibbles(_blocks(codes_NK + np.int8(8)).view(np.uint8)))


def _q4_1(codes_NK: Array, scales: Scales) -> Array:
    """From codes that count up from a minimum, or from signed ones with a zero point."""
    unsigned_NK = codes_NK if scales.zero_point is None else (codes_NK + np.int8(8)).view(np.uint8)
    return _joined(_steps(codes_NK, scales), _minimums(codes_NK, scales), nibbles(_blocks(unsigned_NK)))


def _q5_0(codes_NK: Array, scales: Scales) -> Array:
    return _joined(_steps(codes_NK, scales), *_five_bits(_blocks(codes_NK + np.int8(16)).view(np.uint8)))


def _q5_1(codes_NK: Array, scales: Scales) -> Array:
    return _joined(_steps(codes_NK, scales), _minimums(codes_NK, scales), *_five_bits(_blocks(codes_NK)))


def _iq4_nl(codes_NK: Array, scales: Scales) -> Array:
    return _joined(_steps(codes_NK, scales), nibbles(_blocks(codes_NK)))


def _mxfp4(codes_NK: Array, scales: Scales) -> Array:
    """The exponent as it is: ggml's table of FP4 values is doubled, and its power of two halved."""
    return _joined(scales.scale.numpy().reshape(-1, 1), nibbles(_blocks(codes_NK)))


def _nvfp4(codes_NK: Array, scales: Scales) -> Array:
    """Four FP8 scales, then for each 8 bytes of codes. The second scale is a tensor of its own."""
    octets_B4 = scales.scale.view(torch.uint8).numpy().reshape(-1, 4)
    return _joined(octets_B4, nibbles(codes_NK.reshape(-1, 4, 16)).reshape(-1, 32))


def _five_bits(unsigned_BE: Array) -> tuple[Array, Array]:
    """The plane of fifth bits, and the lower four."""
    high = np.packbits(unsigned_BE >> np.uint8(4), axis=-1, bitorder="little")
    return high, nibbles(unsigned_BE & np.uint8(15))


def _blocks(codes_NK: Array) -> Array:
    return codes_NK.reshape(-1, _BLOCK)


def _steps(codes_NK: Array, scales: Scales) -> Array:
    """The float16 scale of each block [B, 1]; a wider group repeats its own."""
    return _per_block(_floats(scales.scale), codes_NK)


def _minimums(codes_NK: Array, scales: Scales) -> Array:
    """The value of code 0 of each block, float16 [B, 1]."""
    return _per_block(_offsets(scales) if scales.minimum is None else _floats(scales.minimum), codes_NK)


def _offsets(scales: Scales) -> Array:
    """What zero points stand for in a sum q d + m of codes from 0: (q - 8 - z) d = q d - (8 + z) d. float64 [N, G]."""
    assert scales.zero_point is not None
    offsets: Array = -(scales.zero_point.double() + 8).numpy() * _floats(scales.scale).astype(np.float64)
    return offsets


def _per_block(values_NG: Array, codes_NK: Array) -> Array:
    blocks = codes_NK.shape[1] // _BLOCK
    return np.repeat(_half(values_NG), blocks // values_NG.shape[1], axis=1).reshape(-1, 1)


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise RecipeError(
            f"a weight has a scale of {np.abs(values).max():.3g}, and GGUF stores scales in float16, up to 65504",
            remedy="`ignore` this layer, or choose `compressed-tensors`, which keeps the model's own type",
            field="/target/format",
        )
    return half


def _half_error(exact: Array) -> Array:
    """What rounding to float16 does to each number."""
    error: Array = np.abs(exact.astype(np.float16).astype(np.float64) - exact)
    return error


def _floats(tensor: torch.Tensor) -> Array:
    floats: Array = tensor.float().numpy()
    return floats


def _joined(*parts: Array) -> Array:
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=-1)


_ENCODERS: dict[str, Callable[[Array, Scales], Array]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    **SUPER_ENCODERS,
}
