"""Keys and values as a quantized cache gives them back.

Legend: states are [B, H, T, D]: batch, key-value heads, tokens, head dimension.
| Format | What is stored |
| --- | --- |
| fp8, fp8_head | one scale a tensor [1] or a head [H], measured |
| nvfp4 | an E4M3 scale for 16 of D, made at run time; one float32 divisor [1] of these, measured |
| nvfp4_affine | the same of the states less a bias [1, H, 1, D], each channel's measured mean |
| int8 | a scale a token and head, made at run time |
| int4 | a scale and a zero point for 32 of D, made at run time |
"""

from dataclasses import dataclass
from typing import Self

import torch

from optcore.algorithms.activations import static_scale
from optcore.kernels.activations import fake_quantize_activation
from optcore.kernels.hadamard import hadamard
from optcore.schemes import QuantArgs


@dataclass
class ChannelStatistics:
    """What was seen of each channel of keys or values."""

    low_HD: torch.Tensor
    high_HD: torch.Tensor
    sum_HD: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, states_BHTD: torch.Tensor) -> Self:
        """Of one batch, where it is: nobody waits for a GPU."""
        states = states_BHTD.float()
        low_HD, high_HD, sum_HD = (measure(states, dim=(0, 2)) for measure in (torch.amin, torch.amax, torch.sum))
        return cls(low_HD, high_HD, sum_HD, states.shape[0] * states.shape[2])

    def __add__(self, other: Self) -> Self:
        low_HD, high_HD = torch.minimum(self.low_HD, other.low_HD), torch.maximum(self.high_HD, other.high_HD)
        return type(self)(low_HD, high_HD, self.sum_HD + other.sum_HD, self.tokens + other.tokens)


def measured_tensors(seen: ChannelStatistics, args: QuantArgs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a format stores: `scale` or (NVFP4's divisor) `global_scale`; `bias`."""
    if args.dynamic and args.strategy != "tensor_group":
        return {}
    tensors = {}
    low_HD, high_HD, sum_HD = torch.stack((seen.low_HD, seen.high_HD, seen.sum_HD)).cpu()
    if not args.symmetric:  # a floating grid is finest near its zero, which is where most values should be
        bias = (sum_HD / seen.tokens).to(dtype)
        tensors["bias"] = bias[None, :, None, :]
        low_HD, high_HD = low_HD - bias.float(), high_HD - bias.float()
    amax_H = torch.maximum(-low_HD, high_HD).amax(1).clamp(min=0)
    if args.strategy == "tensor_group":
        tensors["global_scale"] = static_scale(amax_H.amax().item(), args, dtype)
    elif args.strategy == "head":
        tensors["scale"] = torch.cat([static_scale(amax.item(), args, dtype) for amax in amax_H])
    else:
        tensors["scale"] = static_scale(amax_H.amax().item(), args, dtype)
    return tensors


def fake_quantize_states(
    states_BHTD: torch.Tensor,
    args: QuantArgs,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    rotate: bool = False,
) -> torch.Tensor:
    """Round keys or values to what the cache's number format holds. Same shape and type; with `rotate`, `rotated` comes
    first, and the result is float32 as its."""
    if bias is not None:
        values = rotated(states_BHTD) if rotate else states_BHTD.float()
        bias = bias.float().to(values.device)
        args = args.model_copy(update={"symmetric": True})  # the bias is the zero point
        return (fake_quantize_states(values - bias, args, scale) + bias).to(
            values.dtype if rotate else states_BHTD.dtype
        )
    if args.strategy == "head":
        assert scale is not None
        args, scale = args.model_copy(update={"strategy": "tensor"}), scale.view(-1, 1, 1, 1)
    rotation = _block(states_BHTD) if rotate else 1
    return fake_quantize_activation(states_BHTD, args, scale, rotation=rotation)


def rotated(states: torch.Tensor) -> torch.Tensor:
    """Channels [..., D] times an orthonormal Hadamard matrix that is its own inverse. float32.

    Applied to queries and keys after rotary embedding it leaves their products as they are and spreads the outlier
    channels of keys over all (QuaRot, arXiv:2404.00456). Where D is no power of two, blocks of the largest power of two
    that divides it are rotated each for itself.
    """
    return hadamard(states.float(), _block(states))


def _block(states: torch.Tensor) -> int:
    return states.shape[-1] & -states.shape[-1]
