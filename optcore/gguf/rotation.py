"""What rotary positions do to the tensors of a GGUF file: the order of rows, and factors of frequencies."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from optcore.export.raw_reader import Array


def neighbours(heads: int, width: int) -> Array:
    """Which row of q or k comes next in the file [heads * width]: value i of a head, then value i + half, and so on."""
    rows = np.arange(heads * width).reshape(heads, 2, width // 2)
    order: Array = rows.swapaxes(1, 2).reshape(-1)
    return order


def frequency_factors(rope: Mapping[str, Any], width: int) -> Array:
    """What llama.cpp divides each frequency of a head of this `width` by, float32 [width / 2].

    The kind `llama3` (https://arxiv.org/abs/2407.21783) has no key in GGUF: these are the tensor `rope_freqs.weight`.
    """
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    frequencies = rope["rope_theta"] ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    turns = int(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)  # within the trained positions
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Array = (1.0 / ((1 - share) / factor + share)).astype(np.float32)
    return factors
