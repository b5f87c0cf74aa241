"""The largest magnitude that NVFP4's second scale was made from.

Model Optimizer stores amax / 2688 where compressed-tensors, whose numbers a checkpoint keeps, stores 2688 / amax. The
reciprocal of the latter has been rounded twice and often misses by a bit, so the magnitude is found again: at most two
float32 numbers have one float32 quotient.
Source: `NVFP4QTensor` in `modelopt/torch/quantization/qtensor/nvfp4_tensor.py` of
https://github.com/NVIDIA/Model-Optimizer.
"""

import math
from collections.abc import Callable, Collection

import numpy as np

from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX

NVFP4_REACH = E4M3_MAX * E2M1_MAX
_LARGEST = float(np.finfo(np.float32).max)
_BITS = 11  # float16 has so many; so has a bfloat16 times 2688 / 1536, which is what a search of scales divides by


def amax_of(divisor: float, measure: Callable[[], Collection[float]]) -> float:
    """A magnitude with float32(2688 / amax) = `divisor`, a float32: the one of few bits; else the only one of float32;
    else the larger that is among those measured. Where no float32 is one, 2688 / divisor itself."""
    near = NVFP4_REACH / divisor
    if _divisor(short := _shortened(near)) == divisor:
        return short
    fitting = [amax for amax in _float32s(near) if _divisor(amax) == divisor]
    known = set(fitting).intersection(measure()) if len(fitting) > 1 else ()
    return max(known or fitting[:1], default=near)


def _divisor(amax: float) -> float:
    return float(np.float32(min(NVFP4_REACH / amax, _LARGEST)))


def _shortened(number: float) -> float:
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(mantissa, _BITS)), exponent - _BITS)


def _float32s(number: float) -> list[float]:
    """The nearest float32, then its neighbours."""
    near = np.float32(number)
    return [float(near), *(float(np.nextafter(near, np.float32(end))) for end in (0, np.inf))]
