"""Rounding of activations as an engine does it at run time, for simulation in plain torch."""

import torch

from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX, grid_of, round_e4m3
from optcore.schemes import QuantArgs


def static_scale(amax: float, args: QuantArgs, dtype: torch.dtype) -> torch.Tensor:
    """The stored activation scale [1] for a measured largest magnitude.

    For NVFP4 it is the float32 divisor of the block scales, 448 * 6 / amax; otherwise amax / reach in `dtype`.
    An input that was always zero (an expert that no token reached) gets 1.
    """
    if args.strategy == "tensor_group":
        return torch.tensor([E4M3_MAX * E2M1_MAX / amax if amax else 1.0])
    return torch.tensor([amax / grid_of(args).reach if amax else 1.0]).to(dtype)


def fake_quantize_activation(x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None) -> torch.Tensor:
    """Round activations [..., K] to the values that an engine would compute with. Same shape and type."""
    grid, values = grid_of(args), x.float()
    if args.strategy == "tensor":
        assert scale is not None
        step = scale.float().to(x.device)
    elif args.strategy == "token":
        step = _nonzero(values.abs().amax(-1, keepdim=True) / grid.reach)
    else:
        assert scale is not None
        divisor = scale.float().to(x.device)
        values = values.unflatten(-1, (-1, args.group_size or values.shape[-1]))
        blocks = round_e4m3(values.abs().amax(-1, keepdim=True) / E2M1_MAX * divisor).float()
        step = _nonzero(blocks) / divisor
    return (grid.round(values / step) * step).reshape(x.shape).to(x.dtype)


def _nonzero(step: torch.Tensor) -> torch.Tensor:
    return torch.where(step == 0, torch.ones_like(step), step)
