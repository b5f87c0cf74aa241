"""Reads a GPTQ version 1 weight back from its bytes, written against the published layout."""

import numpy as np

from optcore.export.raw_reader import Array, RawFiles


def decode_gptq(files: RawFiles, name: str, bits: int) -> Array:
    """The weight [N, K], float32: (code - zero point) * scale of the input's group, zero points stored less one."""
    codes_KN = _fields(files.bits(f"{name}.qweight").T, bits).T
    zero_GN = (_fields(files.bits(f"{name}.qzeros"), bits) + 1) % 2**bits
    scale_GN, group_K = files.floats(f"{name}.scales"), files.bits(f"{name}.g_idx")
    weight_KN = (codes_KN - zero_GN[group_K]).astype(np.float32) * scale_GN[group_K]
    return np.ascontiguousarray(weight_KN.T)


def _fields(words: Array, bits: int) -> Array:
    """The b-bit fields of int32 words [R, W], lowest first: [R, W * 32 / b]."""
    octets = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    if bits == 8:
        return octets.astype(np.int32)
    return np.stack([octets % 16, octets // 16], axis=-1).reshape(len(octets), -1).astype(np.int32)
