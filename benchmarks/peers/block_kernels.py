"""Stand-ins in plain torch for the block-quantizing kernels that modelopt has for CUDA alone.

Written from the formats' definitions, so that modelopt's own calibration runs here: the numbers of such a row are
its own, the seconds are not. NVFP4: E2M1 values, an E4M3 scale a block, one float32 scale a tensor such that the
largest block scale is 448 (or less, as four-over-six asks for). MX: E2M1 or E4M3 values and a power of two, the
smallest at which the block's largest value still fits.
"""

from typing import Any

import torch
from torch import Tensor

E2M1_max, E4M3_max = 6.0, 448.0


def install() -> None:
    """Replace the two kernels in the modules that call them."""
    from modelopt.torch.quantization import tensor_quant
    from modelopt.torch.quantization.nn.modules import tensor_quantizer

    tensor_quant.dynamic_block_quantize_op = _dynamic
    tensor_quantizer.static_blockwise_fp4_fake_quant = _static


def _dynamic(x: Tensor, block: int, amax: Tensor | None, bits: int, exponent_bits: int, *scale_bits: int) -> Tensor:
    """Scales from the values themselves; `amax` is the tensor's calibrated magnitude."""
    blocks = x.float().unflatten(-1, (-1, block))
    largest = blocks.abs().amax(-1, keepdim=True)
    element = {(4, 2): (E2M1_max, _e2m1), (8, 4): (E4M3_max, _e4m3)}[bits, exponent_bits]
    if scale_bits == (8, 8):
        step = torch.exp2((largest / element[0]).clamp(min=2.0**-126).log2().ceil())
    else:
        assert amax is not None
        step = _two_levels(largest, amax.float().amax(), E4M3_max)
    return _rounded(blocks, step, *element).flatten(-2).to(x.dtype)


def _static(x: Tensor, amax: Tensor, whole: Tensor | None, two_levels: bool, top: float, *rest: Any) -> Tensor:
    """Scales that a calibration chose: one magnitude for each block of the last dimension."""
    blocks, largest = x.float().reshape(amax.numel(), -1), amax.float().reshape(-1, 1)
    step = largest / E2M1_max
    if two_levels:
        step = _two_levels(largest, largest.max() if whole is None else whole.float(), top)
    return _rounded(blocks, step, E2M1_max, _e2m1).reshape(x.shape).to(x.dtype)


def _two_levels(largest: Tensor, whole: Tensor, top: float) -> Tensor:
    """E4M3 steps in units of the tensor's float32 scale."""
    unit = whole / (E2M1_max * top)
    return _e4m3((largest / (E2M1_max * unit)).clamp(max=E4M3_max)) * unit


def _rounded(blocks: Tensor, step: Tensor, most: float, nearest: Any) -> Tensor:
    safe = torch.where(step > 0, step, 1.0)
    return torch.where(step > 0, nearest((blocks / safe).clamp(-most, most)) * safe, 0.0)


def _e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).float()


def _e2m1(x: Tensor) -> Tensor:
    """Nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with ties to the even code: steps double at 2 and at 4."""
    step = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0))
    return (x / step).round() * step
