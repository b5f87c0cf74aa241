"""Gram matrices of inputs, X^T X, added up over chunks of tokens in float32.

A Gram matrix is symmetric, so only what lies on and above the diagonal is computed (half the arithmetic of a full
product); `symmetric` fills in the rest once, at the end. Products of bfloat16 numbers are exact in float32: on a GPU
bfloat16 inputs lose nothing by staying what they are, and cost a fraction.

Legend: T tokens, K input channels, J those from a panel's first on, P those of a panel.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

from typing import TYPE_CHECKING

import torch

from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import interpreted, kernel
from optcore.kernels.products import add_product

if TYPE_CHECKING:
    import triton.language as tl

# Tokens a product takes in at once: the float32 copy of a chunk stays small, and the last bits of long sums come out
# the same whatever the batch size, as long as that divides it.
CHUNK_tokens = 4096
# Below this many columns panels are too thin for the half that they save.
_PANELS_FROM_columns = 512
_PANEL_columns = 256


# mypy: disable-error-code="no-untyped-def"


@kernel
def _add_gram(
    x_ptr, gram_ptr, tokens, columns, x_stride, gram_stride,
    UPCAST: tl.constexpr, P: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """One P x P tile of the upper triangle."""
    row, column = tl.program_id(0), tl.program_id(1)
    if column >= row:
        rows_P, columns_P = row * P + tl.arange(0, P), column * P + tl.arange(0, P)
        sum_PP = tl.zeros((P, P), tl.float32)
        for start in range(0, tokens, T):
            tokens_T = start + tl.arange(0, T)
            here_T1 = tokens_T[:, None] < tokens
            place_T1 = x_ptr + tokens_T.to(tl.int64)[:, None] * x_stride
            left_TP = tl.load(place_T1 + rows_P[None, :], mask=here_T1 & (rows_P[None, :] < columns), other=0.0)
            right_TP = tl.load(place_T1 + columns_P[None, :], mask=here_T1 & (columns_P[None, :] < columns), other=0.0)
            if UPCAST:  # the interpreter multiplies bfloat16 wrongly
                left_TP, right_TP = left_TP.to(tl.float32), right_TP.to(tl.float32)
            sum_PP = tl.dot(tl.trans(left_TP), right_TP, sum_PP, input_precision="ieee")
        place_PP = gram_ptr + rows_P.to(tl.int64)[:, None] * gram_stride + columns_P[None, :]
        inside_PP = (rows_P[:, None] < columns) & (columns_P[None, :] < columns)
        tl.store(place_PP, tl.load(place_PP, mask=inside_PP) + sum_PP, mask=inside_PP)


def _launch(gram_KK: torch.Tensor, x_TK: torch.Tensor) -> None:
    tokens, columns = x_TK.shape
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    tile, step = (32, 32) if interpreted() else (128, 64)
    tiles = -(-columns // tile)
    _add_gram[tiles, tiles](
        x_TK, gram_KK, tokens, columns, x_TK.stride(0), gram_KK.stride(0), UPCAST=interpreted(), P=tile, T=step
    )


@launched_by(_launch)
def accumulate(gram_KK: torch.Tensor, x_TK: torch.Tensor) -> None:
    """Add X^T X to the upper triangle of `gram_KK` (float32) in place; what is below the diagonal is undefined."""
    width = len(gram_KK) if len(gram_KK) < _PANELS_FROM_columns else _PANEL_columns
    for part_TK in x_TK.split(CHUNK_tokens):
        operand_TK = _operand(part_TK)
        for start in range(0, len(gram_KK), width):
            panel_TP, right_TJ = operand_TK[:, start : start + width], operand_TK[:, start:]
            add_product(gram_KK[start : start + width, start:], panel_TP, right_TJ)


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
