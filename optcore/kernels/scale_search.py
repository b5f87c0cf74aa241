"""The scales of a weight: largest magnitudes, and the search for the least squared error, in one read of the weight.

Scales of short groups are found a tile of groups at a time, which stays in registers while candidates pass. Long ones
(a row, a block of 128 x 128) get a program each, which reads its values anew for each candidate: from the cache, since
a row of 16384 float32 is 64 KiB and up to 256 KiB of it lie beside an H100's cores. With packed codes asked for, these
are stored by the same program.

Legend: W is [N, K] (outputs, inputs); R x G scales; in kernels S scales of a tile, V values of a group or a chunk.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from optcore.algorithms.rounding import grid_of, scale_reach
from optcore.algorithms.scale_search import Method, choose, factors, objective_of, signs
from optcore.algorithms.storage import Storage, e4m3, e8m0, own_type
from optcore.kernels.candidates import candidate, codes_of, squared_errors, step_of, stored_number
from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, kernel
from optcore.kernels.numbers import divided
from optcore.schemes import QuantArgs, scale_shape

if TYPE_CHECKING:
    import triton.language as tl

# Values of a tile of groups: 16 a thread, whose importance, codes and temporaries then fit in registers too.
_TILE_values = 2048
# Values that a program takes in at once where a scale serves more than fit: 16 a thread of 256.
_CHUNK_values = 4096
_LARGEST_GROUP = 256


class Found(NamedTuple):
    """The scales of a weight as `scale_search.Choice` has them."""

    stored: torch.Tensor
    """[R, G]; E4M3 and E8M0 by their bits, uint8."""
    zero: torch.Tensor | None = None
    """int8 [R, G], of asymmetric formats."""
    error: torch.Tensor | None = None
    """Weighted squared errors, float32 [R, G]: where scales have a divisor, whose choice depends on their sum."""


# mypy: disable-error-code="no-untyped-def"


@kernel
def _choose_group_scales(
    w_ptr, importance_ptr, divisor_ptr, changes_ptr, stored_ptr, error_ptr, packed_ptr, scales, groups, stride,
    CHANGES: tl.constexpr, ELEMENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, REACH: tl.constexpr,
    STORAGE: tl.constexpr, SIGNED: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr,
    S: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Scales of S groups of V values."""
    place_S = tl.program_id(0).to(tl.int64) * S + tl.arange(0, S)
    here_S = place_S < scales
    row_S = place_S // groups
    column_SV = ((place_S - row_S * groups) * V)[:, None] + tl.arange(0, V)[None, :]
    values_SV = tl.load(w_ptr + (row_S * stride)[:, None] + column_SV, mask=here_S[:, None], other=0.0).to(tl.float32)
    weights_SV = 1.0
    if importance_ptr is not None:
        weights_SV = tl.load(importance_ptr + column_SV, mask=here_S[:, None], other=0.0)
    divisor = 1.0 if divisor_ptr is None else tl.load(divisor_ptr)
    amax_S = tl.max(tl.abs(values_SV), 1)
    plain_S = stored_number(divided(amax_S, REACH), divisor, REACH, STORAGE)
    start_S = step_of(plain_S, divisor, STORAGE)
    best_S = plain_S
    if CHANGES > 0 or error_ptr is not None:
        least_S = tl.sum(squared_errors(values_SV, start_S[:, None], ELEMENT, LOW, HIGH) * weights_SV, 1)
    if CHANGES > 0:
        if SIGNED:  # see `scale_search._sign`: the lowest code has no positive twin
            start_S = tl.where(tl.max(values_SV, 1) > -tl.min(values_SV, 1), -start_S, start_S)
        for index in range(CHANGES):
            tried_S = candidate(plain_S, start_S, tl.load(changes_ptr + index), divisor, REACH, STORAGE)
            step_S1 = step_of(tried_S, divisor, STORAGE)[:, None]
            error_S = tl.sum(squared_errors(values_SV, step_S1, ELEMENT, LOW, HIGH) * weights_SV, 1)
            better_S = error_S < least_S
            best_S = tl.where(better_S, tried_S, best_S)
            least_S = tl.where(better_S, error_S, least_S)
    if error_ptr is not None:
        tl.store(error_ptr + place_S, least_S, mask=here_S)
    tl.store(stored_ptr + place_S, best_S.to(stored_ptr.dtype.element_ty), mask=here_S)
    if packed_ptr is not None:
        code_SV = codes_of(values_SV, step_of(best_S, divisor, STORAGE)[:, None], ELEMENT, LOW, HIGH) + BIAS
        if BITS == 4:
            even_SV, odd_SV = tl.split(tl.reshape(code_SV, (S, V // 2, 2)))
            byte_SV = (even_SV | (odd_SV << 4)).to(tl.uint8)
            place_SV = (place_S * (V // 2))[:, None] + tl.arange(0, V // 2)[None, :]
            tl.store(packed_ptr + place_SV, byte_SV, mask=here_S[:, None])
        else:
            place_SV = (place_S * V)[:, None] + tl.arange(0, V)[None, :]
            tl.store(packed_ptr + place_SV, (code_SV & 255).to(tl.uint8), mask=here_S[:, None])


@kernel
def _choose_long_scales(
    w_ptr, importance_ptr, changes_ptr, stored_ptr, packed_ptr, rows, columns, stride, values,
    CHANGES: tl.constexpr, ELEMENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, REACH: tl.constexpr,
    STORAGE: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """The scale of a rectangle of HEIGHT x WIDTH values, or of a whole row (WIDTH 0)."""
    first_row, first_column = tl.program_id(0).to(tl.int64) * HEIGHT, tl.program_id(1) * WIDTH
    highest_V, lowest_V = tl.zeros((V,), tl.float32), tl.zeros((V,), tl.float32)
    for start in range(0, values, V):
        row_V, column_V, here_V = _places(start, first_row, first_column, rows, columns, WIDTH, V)
        value_V = tl.load(w_ptr + row_V * stride + column_V, mask=here_V, other=0.0).to(tl.float32)
        highest_V, lowest_V = tl.maximum(highest_V, value_V), tl.minimum(lowest_V, value_V)
    highest, lowest = tl.max(highest_V, 0), tl.min(lowest_V, 0)
    plain = stored_number(divided(tl.maximum(highest, -lowest), REACH), 1.0, REACH, STORAGE)
    best = plain
    if CHANGES > 0:
        start_step = tl.where(highest > -lowest, -plain, plain) if SIGNED else plain
        least = _long_error(
            w_ptr, importance_ptr, plain, first_row, first_column, rows, columns, stride, values,
            ELEMENT, LOW, HIGH, WIDTH, V,
        )  # fmt: skip
        for index in range(CHANGES):
            tried = candidate(plain, start_step, tl.load(changes_ptr + index), 1.0, REACH, STORAGE)
            error = _long_error(
                w_ptr, importance_ptr, tried, first_row, first_column, rows, columns, stride, values,
                ELEMENT, LOW, HIGH, WIDTH, V,
            )  # fmt: skip
            better = error < least
            best = tl.where(better, tried, best)
            least = tl.where(better, error, least)
    scale_place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(stored_ptr + scale_place, best.to(stored_ptr.dtype.element_ty))
    if packed_ptr is not None:
        for start in range(0, values, V):
            row_V, column_V, here_V = _places(start, first_row, first_column, rows, columns, WIDTH, V)
            value_V = tl.load(w_ptr + row_V * stride + column_V, mask=here_V, other=0.0).to(tl.float32)
            code_V = codes_of(value_V, best, ELEMENT, LOW, HIGH) + BIAS
            tl.store(packed_ptr + row_V * columns + column_V, (code_V & 255).to(tl.uint8), mask=here_V)


@device
def _long_error(
    w_ptr, importance_ptr, step, first_row, first_column, rows, columns, stride, values,
    ELEMENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, WIDTH: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """The weighted squared error of one step for all its values."""
    error_V = tl.zeros((V,), tl.float32)
    for start in range(0, values, V):
        row_V, column_V, here_V = _places(start, first_row, first_column, rows, columns, WIDTH, V)
        value_V = tl.load(w_ptr + row_V * stride + column_V, mask=here_V, other=0.0).to(tl.float32)
        own_V = squared_errors(value_V, step, ELEMENT, LOW, HIGH)
        if importance_ptr is not None:
            own_V = own_V * tl.load(importance_ptr + column_V, mask=here_V, other=0.0)
        error_V += own_V
    return tl.sum(error_V, 0)


@device
def _places(start, first_row, first_column, rows, columns, WIDTH: tl.constexpr, V: tl.constexpr):
    """Rows and columns of V values of a rectangle, and which of them there are."""
    value_V = start + tl.arange(0, V)
    if WIDTH == 0:
        return first_row, value_V, value_V < columns
    else:
        row_V, column_V = first_row + value_V // WIDTH, first_column + value_V % WIDTH
        return row_V, column_V, (row_V < rows) & (column_V < columns)


def launch_packing(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None,
    divisor: torch.Tensor | None,
    packed: torch.Tensor | None,
) -> Found:
    """Scales by the kernel for their shape; codes into the bytes of `packed`, where they are wanted."""
    if not _has_kernel(weight_NK, args, method, dtype):
        return NotImplemented
    weight_NK = weight_NK if weight_NK.stride(1) == 1 else weight_NK.contiguous()
    codes_NB = None if packed is None else packed.view(torch.uint8)
    importance_K = None if importance_K is None or method == "max" else importance_K.float().contiguous()
    changes = _changes(args, weight_NK.device) if method in ("mse", "hessian") else None
    stored = torch.empty(
        scale_shape(args, (weight_NK.shape[0], weight_NK.shape[1])),
        dtype=torch.uint8 if args.scale_type in ("e4m3", "e8m0") else dtype,
        device=weight_NK.device,
    )
    grid = grid_of(args)
    constants: dict[str, Any] = {
        "CHANGES": 0 if changes is None else len(changes),
        "ELEMENT": "int" if args.type == "int" else ("e4m3" if args.bits == 8 else "e2m1"),
        "LOW": grid.ends[0],
        "HIGH": grid.ends[1],
        "REACH": scale_reach(args),
        "STORAGE": str(dtype).removeprefix("torch.") if args.scale_type == "stored" else args.scale_type,
        "SIGNED": signs(args),
        "BIAS": 2 ** (args.bits - 1) if args.type == "int" and (args.bits < 8 or args.packed) else 0,
        "enable_fp_fusion": False,  # a product is rounded before it is added to, as in the definition
    }
    if args.group_size:
        error = None if divisor is None else torch.empty(stored.shape, device=weight_NK.device)
        size = _TILE_values // args.group_size
        _choose_group_scales[(-(-stored.numel() // size),)](
            weight_NK, importance_K, divisor, changes, stored, error, codes_NB,
            stored.numel(), stored.shape[1], weight_NK.stride(0), **constants, BITS=args.bits, S=size,
            V=args.group_size, num_warps=4,
        )  # fmt: skip
        return Found(stored, error=error)
    height, width = args.block or (1, 0)
    _choose_long_scales[tuple(stored.shape)](
        weight_NK, importance_K, changes, stored, codes_NB, *weight_NK.shape, weight_NK.stride(0),
        height * width or weight_NK.shape[1], **constants, HEIGHT=height, WIDTH=width,
        V=_CHUNK_values, num_warps=8,
    )  # fmt: skip
    return Found(stored)


def _has_kernel(weight_NK: torch.Tensor, args: QuantArgs, method: Method, dtype: torch.dtype) -> bool:
    if weight_NK.dtype not in (torch.float32, torch.bfloat16) or not weight_NK.numel() or method == "percentile":
        return False
    if not args.symmetric or args.type not in ("int", "float") or args.strategy == "tensor":
        return False
    if args.scale_type == "stored" and dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    size = args.group_size or 1
    if weight_NK.shape[1] % size:
        return False
    in_groups = args.scale_type in ("stored", "e4m3", "e8m0") and size <= _LARGEST_GROUP and size & (size - 1) == 0
    return in_groups if args.group_size else args.scale_type == "stored"


@cache
def _changes(args: QuantArgs, place: torch.device) -> torch.Tensor:
    """What a search adds to plain codes or multiplies plain steps by, on a device once and for all."""
    storage = _storage(args, torch.float32, None)
    if storage.neighbours:
        return torch.tensor(storage.neighbours, dtype=torch.int32, device=place)
    return torch.tensor(factors(args), device=place)


def _storage(args: QuantArgs, dtype: torch.dtype, divisor: torch.Tensor | None) -> Storage:
    if args.scale_type == "e4m3":
        return e4m3(torch.ones(1) if divisor is None else divisor)
    return e8m0(scale_reach(args)) if args.scale_type == "e8m0" else own_type(dtype)


def _launch(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
) -> Found:
    return launch_packing(weight_NK, args, method, dtype, importance_K, divisor, None)


@launched_by(_launch)
def choose_scales(
    weight_NK: torch.Tensor,
    args: QuantArgs,
    method: Method,
    dtype: torch.dtype,
    importance_K: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
) -> Found:
    """The scales of one weight (float32 or bfloat16 [N, K]) in one level, stored in `dtype` or as the format says.

    `mse` and `hessian` search, errors weighted by `importance_K` where that is given (see `scales.find_scales`).
    `divisor` (float32 [1]) is NVFP4's second level. A kernel sums the error of a scale's values in an order of its own:
    of two candidates whose errors agree to 1e-6 it may choose the other.
    """
    storage = _storage(args, dtype, divisor)
    objective = objective_of(weight_NK.float(), importance_K, storage, args)
    choice = choose(objective, method)
    return Found(choice.stored, choice.zero, None if divisor is None else objective.error(choice))
