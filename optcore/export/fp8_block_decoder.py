"""Reads a DeepSeek-style FP8 weight back from its bytes, written against the published layout."""

import numpy as np

from optcore.export.raw_reader import Array, RawFiles, e4m3

_BLOCK = 128


def decode_fp8_block(files: RawFiles, name: str) -> Array:
    """The weight [N, K]: each value times the scale of the 128 x 128 block that it lies in, float32."""
    codes, scale = files.bits(f"{name}.weight"), files.floats(f"{name}.weight_scale_inv")
    row, column = (np.arange(size) // _BLOCK for size in codes.shape)
    weight: Array = e4m3(codes) * scale[row[:, None], column]
    return weight
