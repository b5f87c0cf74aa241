"""Gram matrices of inputs, X^T X, added up over chunks of tokens in float32.

A Gram matrix is symmetric, so only what lies on and above the diagonal is computed, panel by panel of columns (half the
arithmetic of a full product); `symmetric` fills in the rest once, at the end. Products of bfloat16 numbers are exact in
float32: on a GPU bfloat16 inputs lose nothing by staying what they are, and cost a fraction.
"""

import torch

# Tokens a product takes in at once: the float32 copy of a chunk stays small, and the last bits of long sums come out
# the same whatever the batch size, as long as that divides it.
CHUNK_tokens = 4096
# Below this many columns panels are too thin for the half that they save.
_PANELS_FROM_columns = 512
_PANEL_columns = 256


def accumulate(gram_KK: torch.Tensor, x_TK: torch.Tensor) -> None:
    """Add X^T X to the upper triangle of `gram_KK` (float32) in place; what is below the diagonal is undefined."""
    width = len(gram_KK) if len(gram_KK) < _PANELS_FROM_columns else _PANEL_columns
    for part_TK in x_TK.split(CHUNK_tokens):
        operand_TK = _operand(part_TK)
        for start in range(0, len(gram_KK), width):
            panel_TP, right_TJ = operand_TK[:, start : start + width], operand_TK[:, start:]
            _add_product(gram_KK[start : start + width, start:], panel_TP, right_TJ)


def accumulate_cross(cross_KK: torch.Tensor, x_TK: torch.Tensor, other_TK: torch.Tensor) -> None:
    """Add X^T Y to `cross_KK` (float32) in place: not symmetric, so all of it. X and Y are of one type."""
    for part_TK, other_part_TK in zip(x_TK.split(CHUNK_tokens), other_TK.split(CHUNK_tokens), strict=True):
        _add_product(cross_KK, _operand(part_TK), _operand(other_part_TK))


def symmetric(gram_KK: torch.Tensor) -> torch.Tensor:
    """The whole matrix of an upper triangle."""
    return gram_KK.triu() + gram_KK.triu(1).mT


def _operand(x_TK: torch.Tensor) -> torch.Tensor:
    """X in the type that is multiplied: bfloat16 stays itself where the device sums its products in float32."""
    return x_TK if x_TK.is_cuda and x_TK.dtype == torch.bfloat16 else x_TK.float()


def _add_product(sum_KJ: torch.Tensor, left_TK: torch.Tensor, right_TJ: torch.Tensor) -> None:
    if left_TK.dtype == torch.float32:
        sum_KJ.addmm_(left_TK.mT, right_TJ)
    else:
        sum_KJ += torch.mm(left_TK.mT, right_TJ, out_dtype=torch.float32)
