"""Products of FP8 inputs and FP8 weights with a scale for each row of both, by the library that torch calls for them.

Legend: M rows of x, K inputs, N outputs.
"""

import torch

from optcore.algorithms.rounding import E4M3_MAX, divided, round_e4m3
from optcore.algorithms.storage import own_type
from optcore.kernels.activations import fake_quantize_activation
from optcore.kernels.dispatch import launched_by
from optcore.schemes import PRESETS

_TOKENS = PRESETS["fp8_dynamic"].activations
_LIBRARY_multiple = 16  # of both sides of a weight, or the library refuses it
_ADA = (8, 9)
"""The compute capability from which cards multiply FP8."""


def _launch(x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N1: torch.Tensor) -> torch.Tensor:
    has_fp8 = not x_MK.is_cuda or torch.cuda.get_device_capability(x_MK.device) >= _ADA
    if not has_fp8 or x_MK.dtype != torch.bfloat16 or any(side % _LIBRARY_multiple for side in weight_NK.shape):
        return NotImplemented
    values_MK = x_MK.float()
    step_M1 = own_type(torch.float32).store(divided(values_MK.abs().amax(1, keepdim=True), E4M3_MAX))
    codes_MK = round_e4m3(values_MK / step_M1)
    made: torch.Tensor = torch._scaled_mm(
        codes_MK, weight_NK.mT, step_M1, scale_N1.float().mT.contiguous(), out_dtype=x_MK.dtype
    )
    return made


@launched_by(_launch)
def fp8_matmul(x_MK: torch.Tensor, weight_NK: torch.Tensor, scale_N1: torch.Tensor) -> torch.Tensor:
    """x W^T [M, N] in x's type, for E4M3 codes [N, K] and the scale [N, 1] of each output; x is rounded to E4M3 with a
    scale for each row. Summed in float32; the library also rounds products of codes together as its tensor cores do.

    The library takes bfloat16, sides of the weight that 16 divides, and cards from compute capability 8.9 on.
    """
    assert _TOKENS
    rounded_MK = fake_quantize_activation(x_MK.float(), _TOKENS, None)
    return (rounded_MK @ (weight_NK.float() * scale_N1.float()).mT).to(x_MK.dtype)
