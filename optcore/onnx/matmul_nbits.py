"""Codes and scales in the layout of ONNX Runtime's `MatMulNBits`, whose weight is decoded while it is multiplied.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits

N outputs, K inputs, B inputs that share a scale, G = ceil(K/B) of those blocks. w = (code - zero point) * scale, codes
unsigned.
"""

from typing import NamedTuple

import numpy as np

from optcore.export.raw_reader import Array

SMALLEST_block, LARGEST_block = 16, 256
"""Values that share a scale, a power of two; the kernels know these widths and those between them."""


class NBits(NamedTuple):
    """The inputs of the operator besides the activations, and its attributes."""

    weight_NGB: Array
    """uint8 [N, G, B * bits / 8]: codes from the low bits up; the last block is filled up with zero points."""
    scale_NG: Array
    """float32 or float16 [N, G]: the operator's scales have the type of its activations."""
    zero_NG: Array | None
    """uint8 [N, ceil(G * bits / 8)]: zero points, packed like codes. None where all are half of the codes' range."""
    bits: int
    block: int
    inputs: int
    """K."""


def pack(codes_NK: Array, scale_NG: Array, zero_NG: Array | None, bits: int) -> NBits:
    """Lay signed integer codes out; `zero_NG` are signed too. A scale for a whole row [N, 1] is repeated in blocks."""
    (rows, inputs), groups = codes_NK.shape, scale_NG.shape[1]
    block = _row_block(inputs) if groups == 1 else _group_block(inputs, groups)
    count, middle = -(-inputs // block), 1 << (bits - 1)
    if groups == 1:
        scale_NG, zero_NG = np.repeat(scale_NG, count, 1), None if zero_NG is None else np.repeat(zero_NG, count, 1)
    filled = np.full((rows, count * block), middle, np.uint8)
    filled[:, :inputs] = codes_NK.astype(np.int16) + middle
    if zero_NG is not None and (spare := count * block - inputs):
        filled[:, -spare:] = (zero_NG[:, -1:].astype(np.int16) + middle).astype(np.uint8)
    zero = None if zero_NG is None else _packed((zero_NG.astype(np.int16) + middle).astype(np.uint8), bits)
    weight = _packed(filled, bits).reshape(rows, count, block * bits // 8)
    return NBits(weight, scale_NG, zero, bits, block, inputs)


def decode(weight: NBits) -> Array:
    """What the stored bytes stand for, float32 [N, K], value by value: shares nothing with `pack`."""
    per_byte, mask = 8 // weight.bits, (1 << weight.bits) - 1
    column = np.arange(weight.inputs)
    group, place = column // weight.block, column % weight.block
    octets_NK = weight.weight_NGB[:, group, place // per_byte]
    codes_NK = (octets_NK >> (place % per_byte * weight.bits).astype(np.uint8)) & mask
    zero_NK: Array = np.array(mask // 2 + 1, np.float32)
    if weight.zero_NG is not None:
        octets_NK = weight.zero_NG[:, group // per_byte]
        zero_NK = ((octets_NK >> (group % per_byte * weight.bits).astype(np.uint8)) & mask).astype(np.float32)
    return (codes_NK.astype(np.float32) - zero_NK) * weight.scale_NG[:, group].astype(np.float32)


def _row_block(inputs: int) -> int:
    """The widest block that is no wider than it must be: scales that repeat cost room."""
    return min(LARGEST_block, max(SMALLEST_block, 1 << (inputs - 1).bit_length()))


def _group_block(inputs: int, groups: int) -> int:
    """The power of two that cuts K into so many groups."""
    return 1 << (-(-inputs // groups) - 1).bit_length()


def _packed(values: Array, bits: int) -> Array:
    """Values of the last dimension in octets, the first ones in the low bits."""
    if bits == 8:
        return values
    even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    return even[..., ::2] | even[..., 1::2] << 4
