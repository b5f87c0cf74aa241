"""Rounding of activations as an engine does it at run time: on a GPU in one read and one write.

A kernel's program holds whole groups, so that the scale that a format makes at run time is found, searched and used
where the values are. A rotation in front of the rounding, as a rotated KV cache has it, happens there too.

Legend: x is [..., K]; R panels of W channels in a program, G groups of g values in it.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from math import log2
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from optcore.algorithms.activations import outlier_columns
from optcore.algorithms.rounding import divided as quotient
from optcore.algorithms.rounding import grid_of, scale_reach
from optcore.algorithms.scale_search import Choice, Objective, asymmetric
from optcore.algorithms.scale_search import search as find_best
from optcore.algorithms.storage import Storage, e4m3, e8m0, own_type
from optcore.kernels.dispatch import launched_by
from optcore.kernels.elements import FLOATS, elements_of, nearest, stored_as
from optcore.kernels.hadamard import hadamard, is_differentiated, is_fused, root, transformed
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import (
    decode_e4m3,
    decode_e8m0,
    divided,
    encode_e4m3,
    encode_e8m0,
    round_e2m1,
    round_e4m3,
    round_even,
)
from optcore.kernels.panels import panels_of, power_of_two, warps_of
from optcore.schemes import QuantArgs

if TYPE_CHECKING:
    import triton.language as tl

# E4M3 codes beside the plain one that the search tries: with it the 8 candidates that a kernel can afford. Downwards
# they clip the largest value of a block; +4 to +5 map it to 4 instead of 6 (arXiv:2512.02010).
_SEARCHED = (-3, -2, -1, 1, 2, 4, 5)
# Values that share a scale and still fit the registers of 16 warps.
_LARGEST_group = 32768
# 32 values a thread: four 16-byte loads of bfloat16 in flight.
_TILE_values = 4096


# mypy: disable-error-code="no-untyped-def"


@device
def _stored(step, divisor, STORAGE: tl.constexpr, REACH: tl.constexpr, LARGEST: tl.constexpr):
    """The stored number of a step, never one that stands for zero: a code, or the step itself in float32."""
    if STORAGE == "e4m3":
        code = encode_e4m3(step * divisor)
        return tl.where(code == 0, 32, code)  # 2^-3, the epsilon of E4M3
    elif STORAGE == "e8m0":
        return encode_e8m0(step * REACH, LARGEST)
    else:
        return tl.where(step == 0, 1.1920928955078125e-07, step)


@device
def _step(stored, divisor, STORAGE: tl.constexpr):
    if STORAGE == "e4m3":
        return divided(decode_e4m3(stored), divisor)
    elif STORAGE == "e8m0":
        return decode_e8m0(stored)
    else:
        return stored


@device
def _error(values_Gg, step_G, GRID: tl.constexpr):
    """Squared error of each group. By the reciprocal: a quotient whose last bit that moves lies between two grid values
    that are equally near, and the error stays what it is."""
    scaled_Gg = tl.abs(values_Gg) * divided(1.0, step_G)[:, None]
    rounded_Gg = round_e4m3(scaled_Gg) if GRID == 1 else round_e2m1(scaled_Gg)
    off_Gg = rounded_Gg * step_G[:, None] - tl.abs(values_Gg)
    return tl.sum(off_Gg * off_Gg, 1)


@device
def _searched_code(
    values_Gg, plain_G, divisor,
    STORAGE: tl.constexpr, GRID: tl.constexpr, OFFSETS: tl.constexpr, LOWEST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """The code of the least squared error among those beside the plain one; bit i of OFFSETS stands for i - 8."""
    best_G = plain_G
    least_G = _error(values_Gg, _step(plain_G, divisor, STORAGE), GRID)
    for place in tl.static_range(16):
        if (OFFSETS >> place) & 1 == 1:
            code_G = tl.minimum(tl.maximum(plain_G + (place - 8), LOWEST), LAST)
            error_G = _error(values_Gg, _step(code_G, divisor, STORAGE), GRID)
            best_G = tl.where(error_G < least_G, code_G, best_G)
            least_G = tl.minimum(error_G, least_G)
    return best_G


@kernel
def _fake_quantize(
    x_ptr, out_ptr, scale_ptr, panels, per_row, columns, x_stride, tokens, heads,
    STORAGE: tl.constexpr, GRID: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    SYMMETRIC: tl.constexpr, REACH: tl.constexpr, LARGEST: tl.constexpr,
    OFFSETS: tl.constexpr, LOWEST: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr, ROOT: tl.constexpr, EVEN: tl.constexpr, INTERPRETED: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Read, rotate, find the scale, round, write."""
    panel_R = tl.program_id(0) * R + tl.arange(0, R)
    row_R = panel_R // per_row
    column_RW = (panel_R % per_row * W)[:, None] + tl.arange(0, W)[None, :]
    inside_RW = (panel_R < panels)[:, None]
    if not EVEN:
        inside_RW = inside_RW & (column_RW < columns)
    row_R1 = row_R.to(tl.int64)[:, None]
    values_RW = tl.load(x_ptr + row_R1 * x_stride + column_RW, mask=inside_RW, other=0.0).to(tl.float32)
    if BLOCK > 1:
        values_RW = transformed(values_RW, BLOCK, ROOT, R, W)
    values_Gg = tl.reshape(values_RW, (G, R * W // G))
    if STORAGE == "given":
        head_R = row_R // tokens % heads
        step_G1 = tl.load(scale_ptr + head_R).to(tl.float32)[:, None]
        rounded_Gg = nearest(divided(values_Gg, step_G1) + 0.0, GRID, LOW, HIGH) * step_G1
    elif SYMMETRIC:
        divisor = 1.0
        if STORAGE == "e4m3":
            divisor = tl.load(scale_ptr).to(tl.float32)
        amax_G = tl.max(tl.abs(values_Gg), 1)
        stored_G = _stored(divided(amax_G, REACH), divisor, STORAGE, REACH, LARGEST)
        if OFFSETS > 0:
            stored_G = _searched_code(values_Gg, stored_G, divisor, STORAGE, GRID, OFFSETS, LOWEST, LAST)
        step_G1 = _step(stored_G, divisor, STORAGE)[:, None]
        if STORAGE == "e8m0":  # by a power of two: its reciprocal is one too
            units_Gg = values_Gg * decode_e8m0(254 - stored_G)[:, None]
        else:
            units_Gg = divided(values_Gg, step_G1)
        rounded_Gg = nearest(units_Gg + 0.0, GRID, LOW, HIGH) * step_G1
    else:
        low_G, high_G = tl.minimum(tl.min(values_Gg, 1), 0.0), tl.maximum(tl.max(values_Gg, 1), 0.0)
        step_G = _stored(divided(high_G - low_G, HIGH - LOW), 1.0, STORAGE, REACH, LARGEST)
        zero_G = tl.minimum(tl.maximum(round_even(LOW - divided(low_G, step_G)), LOW), HIGH)
        zero_G1, step_G1 = tl.where(high_G == low_G, 0.0, zero_G)[:, None], step_G[:, None]
        rounded_Gg = (nearest(divided(values_Gg, step_G1) + zero_G1, GRID, LOW, HIGH) - zero_G1) * step_G1
    out_RW = stored_as(tl.reshape(rounded_Gg, (R, W)), out_ptr, INTERPRETED)
    tl.store(out_ptr + row_R1 * columns + column_RW, out_RW, mask=inside_RW)


def _launch(
    x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, search: bool = False, rotation: int = 1
) -> torch.Tensor:
    elements, storage = elements_of(args), "given" if args.strategy == "tensor" else _KINDS.get(args.scale_type)
    size = 1 if storage == "given" else power_of_two(args.group_size or x.shape[-1])
    if elements is None or storage is None or x.dtype not in FLOATS or not x.numel() or args.outliers is not None:
        return NotImplemented
    if is_differentiated(x) or (not args.symmetric and args.type != "int"):
        return NotImplemented
    if size > _LARGEST_group or (args.group_size or size) != size or not (rotation == 1 or is_fused(rotation)):
        return NotImplemented
    tokens, heads = _heads(x, scale) if storage == "given" and scale is not None else (1, 1)
    if heads < 1:
        return NotImplemented
    tiles = panels_of(x, max(size, rotation), 512 if interpreted() else _TILE_values)
    values = tiles.height * tiles.width
    reach = scale_reach(args)
    near = _storage(args, scale, x.device) if search and storage in ("e4m3", "e8m0") else own_type(torch.float32)
    out = torch.empty(x.shape, dtype=x.dtype if rotation == 1 else torch.float32, device=x.device)
    _fake_quantize[tiles.programs,](
        tiles.rows_TK, out, None if scale is None else scale.to(x.device),
        tiles.panels, tiles.per_row, tiles.columns, tiles.rows_TK.stride(0), tokens, heads,
        STORAGE=storage, GRID=elements.grid, LOW=elements.low, HIGH=elements.high,
        SYMMETRIC=args.symmetric, REACH=float(reach), LARGEST=int(log2(reach)),
        OFFSETS=sum(1 << (offset + 8) for offset in near.neighbours), LOWEST=near.codes[0], LAST=near.codes[1],
        BLOCK=rotation, ROOT=root(rotation), EVEN=tiles.columns % tiles.width == 0, INTERPRETED=interpreted(),
        R=tiles.height, W=tiles.width, G=tiles.height if size == 1 else values // size, num_warps=warps_of(values),
        enable_fp_fusion=search,
    )  # fmt: skip
    return out


_KINDS = {"stored": "own", "e4m3": "e4m3", "e8m0": "e8m0"}
"""How kernels know what `_storage` gives."""


def _heads(x: torch.Tensor, scale: torch.Tensor) -> tuple[int, int]:
    """Rows in a row that share a given scale, and how many scales there are; none where they lie otherwise."""
    if scale.numel() == 1:
        return 1, 1
    per_head = x.ndim == 4 and scale.shape == (x.shape[1], 1, 1, 1)
    return (x.shape[2], x.shape[1]) if per_head else (1, 0)


@launched_by(_launch)
def fake_quantize_activation(
    x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, search: bool = False, rotation: int = 1
) -> torch.Tensor:
    """Round activations [..., K] to the values that an engine would compute with. Same shape and type.

    `scale` is what `static_scale` gave, where the format has one; [H, 1, 1, 1] of x [B, H, T, K] where heads have their
    own. `search` chooses NVFP4 and MX block scales by the least squared error among at most 8 instead of by the
    maximum; on a GPU these errors are summed in another order, so that among equally good scales it may take another.
    `rotation` first transforms blocks of so many values by `hadamard`, in float32, which the result then is.
    LLM.int8's outlier columns come back as they are:
    they are multiplied by the unrounded weight, which is the caller's to do.
    """
    if args.outliers is not None:
        outliers_K = outlier_columns(x, args)
        regular = args.model_copy(update={"outliers": None})
        return torch.where(outliers_K, x, fake_quantize_activation(x.masked_fill(outliers_K, 0), regular, scale))
    if rotation > 1:
        x = hadamard(x.float(), rotation)
    values, grid = _grouped(x.float(), args), grid_of(args)
    step, zero = _steps(values, args, scale, search=search)
    shift = 0.0 if zero is None else zero
    return ((grid.round(values / step + shift) - shift) * step).flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def _grouped(values: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """[..., K] as [..., groups, values that share a scale]; the last group may be short."""
    size = args.group_size or values.shape[-1]
    return pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))


def _steps(
    values: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, *, search: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Steps and zero points that broadcast over the groups."""
    if args.strategy == "tensor":
        assert scale is not None
        return scale.float().to(values.device), None
    storage = _storage(args, scale, values.device)
    choice = _chosen(values, args, storage, search=search)
    zero = None if choice.zero is None else choice.zero.float().unsqueeze(-1)
    return storage.step(choice.stored).unsqueeze(-1), zero


def _storage(args: QuantArgs, scale: torch.Tensor | None, device: torch.device) -> Storage:
    if args.strategy == "tensor_group":
        assert scale is not None
        return e4m3(scale.float().to(device))._replace(neighbours=_SEARCHED)
    return e8m0(scale_reach(args)) if args.scale_type == "e8m0" else own_type(torch.float32)


def _chosen(values: torch.Tensor, args: QuantArgs, storage: Storage, *, search: bool) -> Choice:
    if not args.symmetric:
        return asymmetric(storage, args.bits, values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0))
    amax = values.abs().amax(-1)
    plain = Choice(storage.store(quotient(amax, scale_reach(args))))
    return _searched(values, args, storage, plain, amax) if search and storage.neighbours else plain


def _searched(values: torch.Tensor, args: QuantArgs, storage: Storage, plain: Choice, amax: torch.Tensor) -> Choice:
    rows = Choice(plain.stored.flatten(0, -2))
    objective = Objective(values.flatten(0, -3), None, storage, args)
    return Choice(find_best(objective, rows, -amax, amax).stored.view(plain.stored.shape))
