"""Scales of weights.

Shapes: W is [N, K] (outputs, inputs); g values along K share a scale. Scales are stored as `tensor` [1],
`channel` [N, 1], `group` [N, K/g], `tensor_group` (NVFP4) [N, K/g] in E4M3 with one float32 divisor [1],
`block` [ceil(N/128), ceil(K/128)]. Layers that an engine fuses (q/k/v, gate/up) are passed together: what is one number
per tensor is then one per group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from optcore.algorithms.blocks import blocks
from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX, decode_e8m0, scale_reach
from optcore.algorithms.scale_search import Method, choose, ends, objective_of
from optcore.algorithms.storage import (
    Storage,
    double,
    double_step,
    e4m3,
    e8m0,
    half,
    own_type,
    second_level,
    super_scaled,
)
from optcore.algorithms.super_blocks import scale_codes
from optcore.kernels.block_scales import block_scales
from optcore.kernels.scale_search import Found, choose_scales
from optcore.schemes import QuantArgs

# A search may raise a block's FP8 scale by up to 1.75, so the largest block must not sit at 448 already.
_SEARCH_NORMALISER = 256.0


class Scales(NamedTuple):
    """The scales of one weight, as they are stored."""

    scale: torch.Tensor
    """In the checkpoint's type; E4M3 for NVFP4; uint8 exponent + 127 for MX; int8 for double quantization."""
    global_scale: torch.Tensor | None = None
    """NVFP4's second level, a divisor: the step is `scale / global_scale`."""
    zero_point: torch.Tensor | None = None
    """int8, shaped like `scale`: the code that stands for zero."""
    second: torch.Tensor | None = None
    """Double quantization's second level: multipliers of 256 scales in a row, float32 [ceil(N * K/g / 256)]."""
    mean: torch.Tensor | None = None
    """What double quantization subtracted from the scales first, float32 [1]."""
    super_scale: torch.Tensor | None = None
    """ggml's second level, a multiplier, float16 [N, K/256]: the step is `super_scale * scale`, `scale` being int8
    (uint8 in formats with a minimum)."""
    minimum: torch.Tensor | None = None
    """Of formats with a minimum, shaped like `scale`: uint8 with a second level, else the value of code 0, float16."""
    super_minimum: torch.Tensor | None = None
    """Second level of the minimums, float16 [N, K/256]: code 0 stands for `-(super_minimum * minimum)`."""

    def step(self) -> torch.Tensor:
        """What one grid unit is worth, float32, shaped like `scale`; negative where that fits better. Never zero, but
        where a block of zeros has a codebook without one (IQ4)."""
        if self.super_scale is not None:
            return _spread_level(self.super_scale, self.scale)
        if self.scale.dtype == torch.uint8:
            return decode_e8m0(self.scale)
        if self.second is not None and self.mean is not None:
            return double_step(self.scale, self.second, self.mean)
        step = self.scale.float()
        return step if self.global_scale is None else step / self.global_scale

    def offset(self) -> torch.Tensor | None:
        """What code 0 stands for in formats with a minimum, float32, shaped like `scale`."""
        if self.minimum is None:
            return None
        return self.minimum.float() if self.super_minimum is None else -_spread_level(self.super_minimum, self.minimum)


def storage_of(scales: Scales, args: QuantArgs) -> Storage:
    """What further scales of a weight would be stored in, second levels as they are."""
    if args.scale_type == "e8m0":
        return e8m0(scale_reach(args))
    if scales.second is not None and scales.mean is not None:
        return double(scales.second, scales.mean)
    if scales.super_scale is not None:
        return super_scaled(scales.super_scale, scale_codes(args))
    if args.scale_type == "f16":
        return Storage(half, torch.Tensor.float)
    return own_type(scales.scale.dtype) if scales.global_scale is None else e4m3(scales.global_scale)


def find_scales(
    weights: Sequence[torch.Tensor],
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
) -> list[Scales]:
    """Scales of the weights of one fused group (float32 [N_i, K] each), rounded to the `dtype` they are stored in.

    `max` maps each largest magnitude to the grid's end; `percentile` clips the outermost 0.01 % at either end (none
    where fewer than 10 000 values share a scale); `mse` and `hessian` search for the least squared error. `hessian`
    weights it by `importance_K`, the mean square of each input (the diagonal of X^T X / tokens): the error of the
    layer's output, if inputs were uncorrelated. Inputs that were never anything but zero leave it the plain `mse`.
    Codes are computed from the rounded scale, so every engine that reads it decodes exactly what we simulated.
    """
    importance = weighing(method, importance_K)
    if args.strategy == "tensor":
        return [_one_level(torch.cat(list(weights)), args, method, dtype, importance)] * len(weights)
    if args.scale_type in ("f16", "super"):
        searched = method in ("mse", "hessian")
        return [Scales(**block_scales(weight, args, importance, searched)._asdict()) for weight in weights]
    if args.strategy == "tensor_group":
        return _two_level(weights, args, method, importance)
    if args.scale_type == "double":
        return [_double(weight, args, method, importance) for weight in weights]
    return [_one_level(weight, args, method, dtype, importance) for weight in weights]


def weighing(method: Method, importance_K: torch.Tensor | None) -> torch.Tensor | None:
    """What a search weighs errors by; nothing where no input was ever anything but zero."""
    if method != "hessian":
        return None
    if importance_K is None:
        raise ValueError("the scale search by `hessian` needs the importance of inputs")
    return importance_K if importance_K.any() else None


def has_own_scales(args: QuantArgs) -> bool:
    """Whether a weight's scales are its own alone, in one level: all that `choose_scales` finds."""
    return args.strategy in ("channel", "group", "block") and args.scale_type in ("stored", "e8m0")


def scales_of(found: Found, args: QuantArgs, divisor: torch.Tensor | None = None) -> Scales:
    """What was found, as it is stored."""
    if divisor is not None:
        return Scales(found.stored.view(torch.float8_e4m3fn), divisor)
    return Scales(found.stored.reshape(1) if args.strategy == "tensor" else found.stored, zero_point=found.zero)


def _spread_level(super_NS: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    """Scales times those of their super-blocks, float32 [N, G]."""
    return super_NS.float().repeat_interleave(scale_NG.shape[1] // super_NS.shape[1], 1) * scale_NG.float()


def _one_level(
    weight_NK: torch.Tensor, args: QuantArgs, method: Method, dtype: torch.dtype, importance_K: torch.Tensor | None
) -> Scales:
    return scales_of(choose_scales(weight_NK, args, method, dtype, importance_K), args)


def _double(weight_NK: torch.Tensor, args: QuantArgs, method: Method, importance_K: torch.Tensor | None) -> Scales:
    low, high = ends(blocks(weight_NK, args), args, method)
    second, mean = second_level(torch.maximum(-low, high) / scale_reach(args))
    choice = choose(objective_of(weight_NK, importance_K, double(second, mean), args), method)
    return Scales(choice.stored, second=second, mean=mean)


def _two_level(
    weights: Sequence[torch.Tensor], args: QuantArgs, method: Method, importance_K: torch.Tensor | None
) -> list[Scales]:
    """NVFP4: one divisor for the group of weights, from its joint largest magnitude."""
    whole = args.model_copy(update={"strategy": "tensor"})
    outer = [ends(blocks(weight, whole), whole, method) for weight in weights]
    reach = max(max(-low.item(), high.item()) for low, high in outer)
    plain = _with_normaliser(weights, args, "max", importance_K, E4M3_MAX, reach)
    if method in ("max", "percentile"):
        return plain.scales
    searched = _with_normaliser(weights, args, method, importance_K, _SEARCH_NORMALISER, reach)
    return searched.scales if searched.error() < plain.error() else plain.scales


class _Judged(NamedTuple):
    scales: list[Scales]
    errors: list[torch.Tensor]

    def error(self) -> float:
        """All errors together; asking waits for a GPU."""
        return sum(error.sum().item() for error in self.errors)


def _with_normaliser(
    weights: Sequence[torch.Tensor],
    args: QuantArgs,
    method: Method,
    importance_K: torch.Tensor | None,
    normaliser: float,
    reach: float,
) -> _Judged:
    """Scales and their joint error, when the largest block has `normaliser` as its scale."""
    largest = torch.finfo(torch.float32).max
    divisor = torch.tensor([min(normaliser * E2M1_MAX / reach, largest) if reach else 1.0], device=weights[0].device)
    found = [choose_scales(weight, args, method, torch.float8_e4m3fn, importance_K, divisor) for weight in weights]
    return _Judged(
        [scales_of(one, args, divisor) for one in found], [one.error for one in found if one.error is not None]
    )
