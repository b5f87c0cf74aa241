"""Rounding of activations at run time: what is measured for it, and what it leaves alone."""

import torch

from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX, grid_of
from optcore.schemes import QuantArgs

_LARGEST = torch.finfo(torch.float32).max


def static_scale(amax: float, args: QuantArgs, dtype: torch.dtype) -> torch.Tensor:
    """The stored activation scale [1] for a measured largest magnitude.

    For NVFP4 it is the float32 divisor of the block scales, 448 * 6 / amax; otherwise amax / reach in `dtype`.
    An input that was always zero (an expert that no token reached) gets 1.
    """
    if args.strategy == "tensor_group":
        return torch.tensor([min(E4M3_MAX * E2M1_MAX / amax, _LARGEST) if amax else 1.0])
    scale = torch.tensor([amax / grid_of(args).reach if amax else 1.0]).to(dtype)
    return torch.where(scale == 0, torch.finfo(dtype).tiny, scale)


def outlier_columns(x: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """Inputs [K] of [..., K] that hold a magnitude above the format's threshold, bool."""
    assert args.outliers is not None
    return (x.abs() > args.outliers).flatten(0, -2).any(0)
