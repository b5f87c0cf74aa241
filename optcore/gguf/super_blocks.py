"""Codes and scales to the bytes of ggml's blocks of 256: the K-quants and IQ4_XS.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Codes of 2 bits stand in bytes 32 apart, of 4
bits in bytes 32 or 64 apart; the bits beyond these are planes of their own; scales of 4 or 6 bits are packed.

Shape suffixes: B super-blocks of a whole weight (N * K / 256), S sub-blocks of one (16 of 16, or 8 of 32).
"""

from collections.abc import Callable

import numpy as np
import torch

from optcore.algorithms.scales import Scales
from optcore.export.raw_reader import Array
from optcore.gguf.nibbles import nibbles

_BLOCK = 256


def _q2_k(codes_NK: Array, scales: Scales) -> Array:
    packed_BS = _sub_blocks(scales.scale, 16) | (_sub_blocks(scales.minimum, 16) << np.uint8(4))
    return _joined(packed_BS, _pairs_of_bits(_blocks(codes_NK)), _half(scales.super_scale), _half(scales.super_minimum))


def _q3_k(codes_NK: Array, scales: Scales) -> Array:
    unsigned = _blocks(codes_NK + np.int8(4)).view(np.uint8)
    step_BS = (_sub_blocks(scales.scale, 16) + np.int8(32)).view(np.uint8)
    high_BS = _joined_bits(step_BS.reshape(-1, 4, 4) >> np.uint8(4), 2)
    steps = (nibbles(step_BS & np.uint8(15)), high_BS)
    return _joined(_plane(unsigned >> np.uint8(2)), _pairs_of_bits(unsigned), *steps, _half(scales.super_scale))


def _q4_k(codes_NK: Array, scales: Scales) -> Array:
    halves = (_half(scales.super_scale), _half(scales.super_minimum))
    return _joined(*halves, _six_bits(scales), _quads_of_bits(_blocks(codes_NK), 32))


def _q5_k(codes_NK: Array, scales: Scales) -> Array:
    codes = _blocks(codes_NK)
    halves = (_half(scales.super_scale), _half(scales.super_minimum))
    return _joined(*halves, _six_bits(scales), _plane(codes >> np.uint8(4)), _quads_of_bits(codes, 32))


def _q6_k(codes_NK: Array, scales: Scales) -> Array:
    unsigned = _blocks(codes_NK + np.int8(32)).view(np.uint8)
    step_BS = _sub_blocks(scales.scale, 16).view(np.uint8)
    high = _pairs_of_bits(unsigned >> np.uint8(4))
    return _joined(_quads_of_bits(unsigned, 64), high, step_BS, _half(scales.super_scale))


def _iq4_xs(codes_NK: Array, scales: Scales) -> Array:
    step_BS = (_sub_blocks(scales.scale, 8) + np.int8(32)).view(np.uint8)
    high_B2 = _joined_bits((step_BS >> np.uint8(4)).reshape(-1, 2, 4).swapaxes(1, 2), 2)
    low_B4 = nibbles((step_BS & np.uint8(15)).reshape(-1, 4, 2)).reshape(-1, 4)
    codes = nibbles(_blocks(codes_NK).reshape(-1, 8, 32)).reshape(-1, _BLOCK // 2)
    return _joined(_half(scales.super_scale), high_B2, low_B4, codes)


def _six_bits(scales: Scales) -> Array:
    """Eight scales and eight minimums of 6 bits in 12 bytes.

    The first four of each have a byte's lower bits; of the others four bits are in the last bytes, scale low and
    minimum high, and two in the upper bits of the first ones.
    """
    scale_BS, minimum_BS = _sub_blocks(scales.scale, 8), _sub_blocks(scales.minimum, 8)
    low_scale, high_scale = np.hsplit(scale_BS, 2)
    low_minimum, high_minimum = np.hsplit(minimum_BS, 2)
    first = low_scale | ((high_scale >> np.uint8(4)) << np.uint8(6))
    second = low_minimum | ((high_minimum >> np.uint8(4)) << np.uint8(6))
    third = (high_scale & np.uint8(15)) | ((high_minimum & np.uint8(15)) << np.uint8(4))
    return np.concatenate([first, second, third], axis=-1)


def _pairs_of_bits(codes_BE: Array) -> Array:
    """The lower two bits of each code, four in a byte: of 128 codes those 32 apart. [B, 64]"""
    return _joined_bits(codes_BE.reshape(-1, 2, 4, 32) & np.uint8(3), 2).reshape(-1, 64)


def _quads_of_bits(codes_BE: Array, apart: int) -> Array:
    """The lower four bits of each code, two in a byte: those 32 or 64 `apart`. [B, 128]"""
    return nibbles(codes_BE.reshape(-1, _BLOCK // (2 * apart), 2 * apart) & np.uint8(15)).reshape(-1, 128)


def _plane(bits_BE: Array) -> Array:
    """One bit of each code, eight in a byte: those 32 apart. [B, 32]"""
    return _joined_bits(bits_BE.reshape(-1, 8, 32), 1)


def _joined_bits(fields: Array, bits: int) -> Array:
    """Fields [..., F, n] of some `bits` to bytes [..., n], the first field lowest."""
    shifts = (np.arange(fields.shape[-2], dtype=np.uint8) * np.uint8(bits))[:, None]
    joined: Array = np.bitwise_or.reduce(fields << shifts, axis=-2)
    return joined


def _blocks(codes_NK: Array) -> Array:
    return codes_NK.reshape(-1, _BLOCK)


def _sub_blocks(values: torch.Tensor | None, count: int) -> Array:
    assert values is not None
    split: Array = values.numpy().reshape(-1, count)
    return split


def _half(values: torch.Tensor | None) -> Array:
    return _sub_blocks(values, 1)


def _joined(*parts: Array) -> Array:
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=-1)


ENCODERS: dict[str, Callable[[Array, Scales], Array]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
