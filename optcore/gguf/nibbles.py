"""Two codes of four bits in a byte, as all of ggml's blocks have them."""

import numpy as np

from optcore.export.raw_reader import Array


def nibbles(codes: Array) -> Array:
    """Codes 0..15 [..., 2 n], uint8, to bytes [..., n]: code j in the low half, code j + n in the high one."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << np.uint8(4))
