"""Gram matrices of inputs, X^T X, added up over chunks of tokens in float32.

A Gram matrix is symmetric, so only what lies on and above the diagonal is computed (half the arithmetic of a full
product); `symmetric` fills in the rest once, at the end. Products of bfloat16 numbers are exact in float32: on a GPU
bfloat16 inputs lose nothing by staying what they are, and cost a fraction.

Legend: T tokens, K input channels, J those from a panel's first on, P those of a panel.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.products import add_product

if TYPE_CHECKING:
    import triton.language as tl

# Tokens a product takes in at once: the float32 copy of a chunk stays small, and the last bits of long sums come out
# the same whatever the batch size, as long as that divides it.
CHUNK_tokens = 4096
# Below this many columns panels are too thin for the half that they save.
_PANELS_FROM_columns = 512
_PANEL_columns = 256


# Triton types these by what they are given, so that Python's annotations would say nothing.
# mypy: disable-error-code="no-untyped-def"


class _Tiles(NamedTuple):
    """How products are cut up for the multiprocessors of an H100 or H200."""

    columns: int
    """P, of a tile that one program adds up."""
    tokens: int
    """T, that it takes in at a time."""
    warps: int
    stages: int


# 128 x 128 x 64 fills the tensor cores: 96 KiB of operands under way and at most 128 registers let two programs share
# a multiprocessor, so that one stores while the other multiplies. 4096 columns are 528 tiles: four for each of 132.
_HALF_TILES = _Tiles(128, 64, 8, 3)
# Plain multiplications keep what they take in in registers: more tokens at a time would spill.
_FLOAT_TILES = _Tiles(128, 16, 8, 3)
_INTERPRETED_TILES = _Tiles(32, 32, 4, 1)
# Programs that run at once: two on each of 132 multiprocessors. A constant, so that sums do not depend on the card.
_AT_ONCE_programs = 264
# A part of the tokens costs its tile written and read again: as much as about two steps take in.
_LEAST_steps = 8
# Tiles next to each other in time read the same columns: eight of them, which L2 keeps.
_BAND_tiles = 8
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@kernel
def _add_products(
    left_ptr, right_ptr, sum_ptr, parts_ptr, tokens, share, columns, left_stride, right_stride, sum_stride, tiles,
    TRIANGLE: tl.constexpr, SPLIT: tl.constexpr, WHOLE_TILES: tl.constexpr, WHOLE_STEPS: tl.constexpr,
    UPCAST: tl.constexpr, P: tl.constexpr, T: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """One P x P tile over a share of the tokens."""
    row, column = _place(tl.program_id(0), tiles, TRIANGLE, BAND)
    rows_P, columns_P = row * P + tl.arange(0, P), column * P + tl.arange(0, P)
    rows_inside_P, columns_inside_P = (rows_P < columns) | WHOLE_TILES, (columns_P < columns) | WHOLE_TILES
    first = tl.program_id(1) * share
    sum_PP = tl.zeros((P, P), tl.float32)
    for start in range(first, tl.minimum(first + share, tokens), T):
        tokens_T = start + tl.arange(0, T)
        here_T1 = ((tokens_T < tokens) | WHOLE_STEPS)[:, None]
        token_T1 = tokens_T.to(tl.int64)[:, None]
        left_at_TP = left_ptr + token_T1 * left_stride + rows_P[None, :]
        right_at_TP = right_ptr + token_T1 * right_stride + columns_P[None, :]
        left_TP = tl.load(left_at_TP, mask=here_T1 & rows_inside_P[None, :], other=0.0)
        right_TP = tl.load(right_at_TP, mask=here_T1 & columns_inside_P[None, :], other=0.0)
        if UPCAST:  # the interpreter multiplies bfloat16 wrongly
            left_TP, right_TP = left_TP.to(tl.float32), right_TP.to(tl.float32)
        sum_PP = tl.dot(tl.trans(left_TP), right_TP, sum_PP, input_precision="ieee")
    if SPLIT:
        part = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        inside = tl.arange(0, P)[:, None] * P + tl.arange(0, P)[None, :]
        tl.store(parts_ptr + part.to(tl.int64) * (P * P) + inside, sum_PP)
    else:
        corner_ptr = sum_ptr + (row * P).to(tl.int64) * sum_stride + column * P
        halves = tl.split(tl.permute(tl.reshape(sum_PP, (P, 2, P // 2)), (0, 2, 1)))
        for half in tl.static_range(2):  # at once, what is there already would take too many registers
            columns_H = half * (P // 2) + tl.arange(0, P // 2)
            place_PH = corner_ptr + tl.arange(0, P)[:, None] * sum_stride + columns_H[None, :]
            inside_PH = rows_inside_P[:, None] & ((column * P + columns_H < columns) | WHOLE_TILES)[None, :]
            tl.store(place_PH, tl.load(place_PH, mask=inside_PH) + halves[half], mask=inside_PH)


@kernel
def _add_parts(
    parts_ptr, sum_ptr, parts, columns, sum_stride, tiles,
    TRIANGLE: tl.constexpr, P: tl.constexpr, R: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """R rows of a tile, summed over its shares of the tokens one after the other: the same bits every time."""
    row, column = _place(tl.program_id(0), tiles, TRIANGLE, BAND)
    within_R, within_P = tl.program_id(1) * R + tl.arange(0, R), tl.arange(0, P)
    part_RP = parts_ptr + tl.program_id(0).to(tl.int64) * (P * P) + within_R[:, None] * P + within_P[None, :]
    sum_RP = tl.zeros((R, P), tl.float32)
    for _ in range(parts):
        sum_RP += tl.load(part_RP)
        part_RP += tl.num_programs(0).to(tl.int64) * (P * P)
    rows_R, columns_P = row * P + within_R, column * P + within_P
    place_RP = sum_ptr + rows_R.to(tl.int64)[:, None] * sum_stride + columns_P[None, :]
    inside_RP = (rows_R < columns)[:, None] & (columns_P < columns)[None, :]
    tl.store(place_RP, tl.load(place_RP, mask=inside_RP) + sum_RP, mask=inside_RP)


@device
def _place(number, tiles, TRIANGLE: tl.constexpr, BAND: tl.constexpr):
    """Row and column of the tile of a program: bands of columns from left to right, in each row by row."""
    if TRIANGLE:
        first = _triangular_root(number) // BAND * BAND
        number -= first * (first + 1) // 2  # the tiles of all bands before
    else:
        first = number // (tiles * BAND) * BAND
        number -= first * tiles
    width = tl.minimum(BAND, tiles - first)
    row, column = number // width, first + number % width
    if TRIANGLE:
        # A band's last rows are a triangle of their own, which is gone through by columns.
        beyond = tl.maximum(number - first * width, 0)
        corner = _triangular_root(beyond)
        is_corner = number >= first * width
        row = tl.where(is_corner, first + beyond - corner * (corner + 1) // 2, row)
        column = tl.where(is_corner, first + corner, column)
    return row, column


@device
def _triangular_root(number):
    """The largest c of which c (c + 1) / 2 is not more than a number; the square root need not be exact."""
    root = ((tl.sqrt((8 * number + 1).to(tl.float32)) - 1.0) * 0.5).to(tl.int32)
    root -= (root * (root + 1) // 2 > number).to(tl.int32)
    return root + ((root + 1) * (root + 2) // 2 <= number).to(tl.int32)


def _launch(gram_KK: torch.Tensor, x_TK: torch.Tensor) -> None:
    return _launch_products(gram_KK, x_TK, x_TK, triangle=True)


def _launch_cross(cross_KK: torch.Tensor, x_TK: torch.Tensor, other_TK: torch.Tensor) -> None:
    return _launch_products(cross_KK, x_TK, other_TK, triangle=False)


def _launch_products(sum_KK: torch.Tensor, left_TK: torch.Tensor, right_TK: torch.Tensor, *, triangle: bool) -> None:
    (tokens, columns), dtype = left_TK.shape, left_TK.dtype
    if dtype not in _DTYPES or right_TK.dtype != dtype or sum_KK.dtype != torch.float32 or sum_KK.stride(1) != 1:
        return NotImplemented
    if not tokens:
        return None
    left_TK, right_TK = (each if each.stride(1) == 1 else each.contiguous() for each in (left_TK, right_TK))
    cut = _INTERPRETED_TILES if interpreted() else _FLOAT_TILES if dtype == torch.float32 else _HALF_TILES
    tiles = -(-columns // cut.columns)
    programs = tiles * (tiles + 1) // 2 if triangle else tiles * tiles
    parts = max(1, min(_AT_ONCE_programs // programs, tokens // (_LEAST_steps * cut.tokens)))
    share = -(-tokens // (parts * cut.tokens)) * cut.tokens
    parts = -(-tokens // share)
    parts_PP = sum_KK.new_empty(parts * programs * cut.columns**2 if parts > 1 else 0)
    places = {"TRIANGLE": triangle, "P": cut.columns, "BAND": _BAND_tiles}
    _add_products[programs, parts](
        left_TK, right_TK, sum_KK, parts_PP, tokens, share, columns,
        left_TK.stride(0), right_TK.stride(0), sum_KK.stride(0), tiles,
        SPLIT=parts > 1, WHOLE_TILES=columns % cut.columns == 0, WHOLE_STEPS=tokens % share == 0,
        UPCAST=interpreted(), T=cut.tokens, num_warps=cut.warps, num_stages=cut.stages, **places,
    )  # fmt: skip
    if parts > 1:
        rows = cut.columns // 8  # a tile's sums are too few programs otherwise
        _add_parts[programs, 8](parts_PP, sum_KK, parts, columns, sum_KK.stride(0), tiles, R=rows, **places)
    return None


@launched_by(_launch)
def accumulate(gram_KK: torch.Tensor, x_TK: torch.Tensor) -> None:
    """Add X^T X to the upper triangle of `gram_KK` (float32) in place; what is below the diagonal is undefined."""
    width = len(gram_KK) if len(gram_KK) < _PANELS_FROM_columns else _PANEL_columns
    for part_TK in x_TK.split(CHUNK_tokens):
        operand_TK = _operand(part_TK)
        for start in range(0, len(gram_KK), width):
            panel_TP, right_TJ = operand_TK[:, start : start + width], operand_TK[:, start:]
            add_product(gram_KK[start : start + width, start:], panel_TP, right_TJ)


@launched_by(_launch_cross)
def accumulate_cross(cross_KK: torch.Tensor, x_TK: torch.Tensor, other_TK: torch.Tensor) -> None:
    """Add X^T Y to `cross_KK` (float32) in place: not symmetric, so all of it. X and Y are of one type."""
    for part_TK, other_part_TK in zip(x_TK.split(CHUNK_tokens), other_TK.split(CHUNK_tokens), strict=True):
        add_product(cross_KK, _operand(part_TK), _operand(other_part_TK))


def symmetric(gram_KK: torch.Tensor) -> torch.Tensor:
    """The whole matrix of an upper triangle."""
    return gram_KK.triu() + gram_KK.triu(1).mT


def _operand(x_TK: torch.Tensor) -> torch.Tensor:
    """X in the type that is multiplied: bfloat16 stays itself where the device sums its products in float32."""
    return x_TK if x_TK.is_cuda and x_TK.dtype == torch.bfloat16 else x_TK.float()
