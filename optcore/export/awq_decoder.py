"""Reads an AutoAWQ gemm weight back from its bytes, written against the published layout."""

import numpy as np

from optcore.export.raw_reader import Array, RawFiles

# Where in its word of eight nibbles an output lies, from the lowest: outputs 0, 2, 4, 6 first, then 1, 3, 5, 7.
_NIBBLE_of_output = (0, 4, 1, 5, 2, 6, 3, 7)


def decode_awq(files: RawFiles, name: str) -> Array:
    """The weight [N, K], float32: (code - zero point) * scale."""
    codes_KN = _unpacked(files.bits(f"{name}.qweight"))
    zero_GN, scale_GN = _unpacked(files.bits(f"{name}.qzeros")), files.floats(f"{name}.scales")
    group = np.arange(len(codes_KN)) // (len(codes_KN) // len(scale_GN))
    weight_KN = (codes_KN - zero_GN[group]).astype(np.float32) * scale_GN[group]
    return np.ascontiguousarray(weight_KN.T)


def _unpacked(words: Array) -> Array:
    """Eight integers from each word, next to each other."""
    unsigned = words.view(np.uint32)
    nibbles = [(unsigned >> np.uint32(4 * nibble)) & np.uint32(15) for nibble in _NIBBLE_of_output]
    return np.stack(nibbles, axis=-1).reshape(len(words), -1).astype(np.int32)
