"""Rounding of weights to the points of their lattice, and its gradient: on a GPU one read and one write each.

The kernel reads scales as they are stored, one for all values that share it; the definition spreads them over the
weight. It says in bits, 8 values to a byte, what lies inside the grid, so that nobody has to wait for the answer to
whether any weight does not.

Legend: W is [N, K] (outputs, inputs); R panels of C columns in a program, G groups of g values that share a scale.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.algorithms.lattice import lattice
from optcore.algorithms.scales import Scales
from optcore.kernels.dispatch import launched_by
from optcore.kernels.elements import FLOATS, elements_of, nearest, stored_as
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import decode_e4m3, decode_e8m0, divided
from optcore.kernels.panels import panels_of
from optcore.schemes import QuantArgs

if TYPE_CHECKING:
    import triton.language as tl

# 16 values a thread: four 16-byte loads of float32 in flight, and registers for 8 programs on a multiprocessor.
_TILE_values = 2048


class Rounded(NamedTuple):
    """Weights as they will be decoded."""

    weight_NK: torch.Tensor
    inside_NK: torch.Tensor | None
    """Where the grid has not ended: bool, or uint8 [N, ceil(K/8)] with the lowest bit first; None: everywhere."""


class _Levels(NamedTuple):
    """Scales as the kernel reads them."""

    storage: str
    scale: torch.Tensor
    divisor: torch.Tensor | None
    zero: torch.Tensor | None
    offset: torch.Tensor | None


# mypy: disable-error-code="no-untyped-def"


@device
def _step(scale_ptr, place, here, divisor_ptr, STORAGE: tl.constexpr):
    """What one grid unit is worth, by `Scales.step`."""
    if STORAGE == "e4m3":
        step = divided(decode_e4m3(tl.load(scale_ptr + place, mask=here, other=1).to(tl.int32)), tl.load(divisor_ptr))
    elif STORAGE == "e8m0":
        step = decode_e8m0(tl.load(scale_ptr + place, mask=here, other=127).to(tl.int32))
    else:
        step = tl.load(scale_ptr + place, mask=here, other=1.0).to(tl.float32)
    return step


@kernel
def _round(
    w_ptr, out_ptr, inside_ptr, scale_ptr, divisor_ptr, zero_ptr, offset_ptr,
    panels, per_row, columns, w_stride, scale_stride, height, width,
    STORAGE: tl.constexpr, GRID: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    EVEN: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A scale serves `height` rows and `width` columns."""
    panel_R = tl.program_id(0) * R + tl.arange(0, R)
    row_R1 = (panel_R // per_row).to(tl.int64)[:, None]
    start_R1 = (panel_R % per_row * C)[:, None]
    column_RC = start_R1 + tl.arange(0, C)[None, :]
    here_R1 = (panel_R < panels)[:, None]
    here_RC = here_R1 if EVEN else here_R1 & (column_RC < columns)
    values_RC = tl.load(w_ptr + row_R1 * w_stride + column_RC, mask=here_RC, other=0.0).to(tl.float32)
    values_Gg = tl.reshape(values_RC, (G, R * C // G))

    group_G = tl.program_id(0) * G + tl.arange(0, G)
    panel_G = group_G // (G // R)
    first_G = panel_G % per_row * C + group_G % (G // R) * (R * C // G)
    here_G = (panel_G < panels) & (first_G < columns)
    place_G = (panel_G // per_row // height).to(tl.int64) * scale_stride + first_G // width
    step_G1 = _step(scale_ptr, place_G, here_G, divisor_ptr, STORAGE)[:, None]
    if offset_ptr is not None:
        offset_G1 = tl.load(offset_ptr + place_G, mask=here_G, other=0.0)[:, None]
        units_Gg = divided(values_Gg - offset_G1, step_G1)
        points_Gg = nearest(units_Gg, GRID, LOW, HIGH) * step_G1 + offset_G1
    elif zero_ptr is not None:
        zero_G1 = tl.load(zero_ptr + place_G, mask=here_G, other=0).to(tl.float32)[:, None]
        units_Gg = divided(values_Gg, step_G1) + zero_G1
        points_Gg = (nearest(units_Gg, GRID, LOW, HIGH) - zero_G1) * step_G1
    else:
        units_Gg = divided(values_Gg, step_G1)
        points_Gg = nearest(units_Gg, GRID, LOW, HIGH) * step_G1
    points_RC = stored_as(tl.reshape(points_Gg, (R, C)), out_ptr, INTERPRETED)
    tl.store(out_ptr + row_R1 * columns + column_RC, points_RC, mask=here_RC)

    inside_Gg = ((units_Gg >= LOW - 0.5) & (units_Gg <= HIGH + 0.5)).to(tl.int32)
    bits = tl.sum(tl.reshape(inside_Gg, (R * C // 8, 8)) << tl.arange(0, 8)[None, :], 1)
    byte_RB = start_R1 // 8 + tl.arange(0, C // 8)[None, :]
    place_RB = inside_ptr + row_R1 * ((columns + 7) // 8) + byte_RB
    tl.store(place_RB, tl.reshape(bits, (R, C // 8)).to(tl.uint8), mask=here_R1 & (byte_RB * 8 < columns))


@kernel
def _pass(
    gradient_ptr, out_ptr, inside_ptr, panels, per_row, columns, stride,
    EVEN: tl.constexpr, INTERPRETED: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    panel_R = tl.program_id(0) * R + tl.arange(0, R)
    row_R1 = (panel_R // per_row).to(tl.int64)[:, None]
    column_RC = (panel_R % per_row * C)[:, None] + tl.arange(0, C)[None, :]
    here_R1 = (panel_R < panels)[:, None]
    here_RC = here_R1 if EVEN else here_R1 & (column_RC < columns)
    gradient_RC = tl.load(gradient_ptr + row_R1 * stride + column_RC, mask=here_RC, other=0.0).to(tl.float32)
    # Eight neighbours read one byte, from the cache.
    byte_RC = tl.load(inside_ptr + row_R1 * ((columns + 7) // 8) + column_RC // 8, mask=here_RC, other=0).to(tl.int32)
    passed_RC = gradient_RC * (byte_RC >> column_RC % 8 & 1).to(tl.float32)
    tl.store(out_ptr + row_R1 * columns + column_RC, stored_as(passed_RC, out_ptr, INTERPRETED), mask=here_RC)


def _launch(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs, dtype: torch.dtype = torch.float32) -> Rounded:
    elements, (rows, columns) = elements_of(args), weight_NK.shape
    if elements is None or not {weight_NK.dtype, dtype} <= set(FLOATS) or not weight_NK.numel():
        return NotImplemented
    levels = _levels(scales, args)
    levels = _Levels(levels.storage, *(None if one is None else one.contiguous() for one in levels[1:]))
    height, width = _shared(scales, args, rows, columns)
    if width < columns and width & (width - 1):
        return NotImplemented
    tiles = panels_of(weight_NK, 8, 512 if interpreted() else _TILE_values)
    out_NK = torch.empty(rows, columns, dtype=dtype, device=weight_NK.device)
    inside_NB = torch.empty(rows, -(-columns // 8), dtype=torch.uint8, device=weight_NK.device)
    _round[tiles.programs,](
        tiles.rows_TK, out_NK, inside_NB, *levels[1:],
        tiles.panels, tiles.per_row, columns, tiles.rows_TK.stride(0), levels.scale.shape[-1], height, width,
        STORAGE=levels.storage, GRID=elements.grid, LOW=elements.low, HIGH=elements.high,
        EVEN=columns % tiles.width == 0, INTERPRETED=interpreted(), R=tiles.height, C=tiles.width,
        G=tiles.height * max(1, tiles.width // width), enable_fp_fusion=False,
    )  # fmt: skip
    return Rounded(out_NK, inside_NB)


def _levels(scales: Scales, args: QuantArgs) -> _Levels:
    """Stored scales where the kernel decodes them, and their steps where a second level of its own makes these."""
    offset = scales.offset()
    if scales.super_scale is not None or scales.second is not None:
        return _Levels("plain", scales.step(), None, scales.zero_point, offset)
    if scales.global_scale is not None:
        return _Levels("e4m3", scales.scale.view(torch.uint8), scales.global_scale, scales.zero_point, offset)
    return _Levels("e8m0" if args.scale_type == "e8m0" else "plain", scales.scale, None, scales.zero_point, offset)


def _shared(scales: Scales, args: QuantArgs, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if args.strategy == "tensor":
        return rows, columns
    if args.block is not None:
        return args.block
    return 1, columns // scales.scale.shape[1]


@launched_by(_launch)
def rounded_weight(
    weight_NK: torch.Tensor, scales: Scales, args: QuantArgs, dtype: torch.dtype = torch.float32
) -> Rounded:
    """The nearest points of a weight's lattice, as `encode` and `decode` give them, bit for bit; rounded to `dtype`.

    What rounds to an end of the grid is inside of it.
    """
    points = lattice(scales, args, (weight_NK.shape[0], weight_NK.shape[1]))
    units_NK = points.in_steps(weight_NK.float())
    low, high = points.grid.ends
    inside_NK = (units_NK >= low - 0.5) & (units_NK <= high + 0.5)
    everywhere = not inside_NK.is_cuda and bool(inside_NK.all())  # a GPU would have to be waited for
    return Rounded(points.from_steps(points.grid.round(units_NK)).to(dtype), None if everywhere else inside_NK)


def _launch_passed(gradient_NK: torch.Tensor, inside_NK: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    if inside_NK is None or inside_NK.dtype != torch.uint8 or not {gradient_NK.dtype, dtype} <= set(FLOATS):
        return NotImplemented
    tiles = panels_of(gradient_NK, 8, 512 if interpreted() else _TILE_values)
    out_NK = torch.empty(gradient_NK.shape, dtype=dtype, device=gradient_NK.device)
    _pass[tiles.programs,](
        tiles.rows_TK, out_NK, inside_NK, tiles.panels, tiles.per_row, tiles.columns, tiles.rows_TK.stride(0),
        EVEN=tiles.columns % tiles.width == 0, INTERPRETED=interpreted(), R=tiles.height, C=tiles.width,
    )  # fmt: skip
    return out_NK


@launched_by(_launch_passed)
def passed(gradient_NK: torch.Tensor, inside_NK: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The gradient of rounded weights where it reaches the weights, in their type; else zero."""
    if inside_NK is None:
        return gradient_NK.to(dtype)
    return (gradient_NK * unpacked(inside_NK, gradient_NK.shape[1])).to(dtype)


def unpacked(inside_NK: torch.Tensor, columns: int) -> torch.Tensor:
    """Whether weights are inside, bool [N, K], of either form."""
    if inside_NK.dtype == torch.bool:
        return inside_NK
    bits = inside_NK.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=inside_NK.device) & 1
    return bits.bool().flatten(1)[:, :columns]
