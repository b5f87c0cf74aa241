"""A weight to what is stored of it: scales are searched, codes computed and packed in one read.

What that stands for takes one more.

Legend: W is [N, K] (outputs, inputs).
"""

from typing import NamedTuple

import torch

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.packing import pack, stored_as, stored_scales
from optcore.algorithms.scale_search import Method
from optcore.algorithms.scales import Scales, scales_of
from optcore.kernels.dispatch import launched_by
from optcore.kernels.scale_search import choose_scales, launch_packing
from optcore.kernels.weights import rounded_weight
from optcore.schemes import QuantArgs


def _launch(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    codes = _empty_codes(weight_NK, args)
    if codes is None:
        return NotImplemented
    found = launch_packing(weight_NK, args, method, dtype, importance_K, divisor, codes)
    if found is NotImplemented:
        return NotImplemented
    return stored_as(codes, weight_NK.shape, scales_of(found, args, divisor), args)


def _empty_codes(weight_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor | None:
    """Room for packed codes; none for widths that do not fill bytes, or columns that do not fill words."""
    rows, columns = weight_NK.shape
    words = args.type == "int" and (args.bits < 8 or args.packed)
    in_bytes = args.bits == 8 or (args.bits == 4 and args.group_size)
    if not in_bytes or (words and columns * args.bits % 32):
        return None
    if words:
        return torch.empty(rows, columns * args.bits // 32, dtype=torch.int32, device=weight_NK.device)
    dtype = torch.uint8 if args.bits == 4 else torch.int8 if args.type == "int" else torch.float8_e4m3fn
    return torch.empty(rows, columns * args.bits // 8, dtype=dtype, device=weight_NK.device)


@launched_by(_launch)
def quantize(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The stored tensors of one weight (float32 or bfloat16 [N, K]), by suffix: `packing.pack` of the nearest codes.

    Scales are those of `choose_scales`, whose arguments these are; codes are the definition's to the last bit.
    """
    codes_NK, scales = _coded(weight_NK, args, method, dtype, importance_K, divisor)
    return pack(codes_NK, scales, args)


class Quantized(NamedTuple):
    """A weight as it is stored."""

    stored: dict[str, torch.Tensor]
    """By suffix."""
    weight_NK: torch.Tensor
    """What that stands for, float32."""


def _launch_both(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
) -> Quantized:
    stored = _launch(weight_NK, args, method, dtype, importance_K)
    if stored is NotImplemented:
        return NotImplemented
    return Quantized(stored, rounded_weight(weight_NK, stored_scales(stored, args), args).weight_NK)


@launched_by(_launch_both)
def quantize_and_decode(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
) -> Quantized:
    """`quantize` in one level of scales, and the weight that engines will read: kernels round it once more, as they
    can faster than they decode."""
    codes_NK, scales = _coded(weight_NK, args, method, dtype, importance_K, None)
    return Quantized(pack(codes_NK, scales, args), decode(codes_NK, scales, args))


def _coded(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None,
    divisor: torch.Tensor | None,
) -> tuple[torch.Tensor, Scales]:
    scales = scales_of(choose_scales(weight_NK, args, method, dtype, importance_K, divisor), args, divisor)
    return encode(weight_NK.float(), scales, args), scales
