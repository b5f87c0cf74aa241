"""Sums of matrix products that are wider than what is multiplied.

Legend: T rows that are summed over, K and J columns.
"""

import torch


def add_product(sum_KJ: torch.Tensor, left_TK: torch.Tensor, right_TJ: torch.Tensor) -> None:
    """Add left^T right to a sum in place.

    16-bit factors of a float32 sum stay what they are. On a GPU the product adds to the sum where it lies, so that no
    [K, J] tensor is made, written and read again, and nothing is rounded to 16 bits in between.
    """
    if left_TK.dtype == sum_KJ.dtype:
        sum_KJ.addmm_(left_TK.mT, right_TJ)
    elif left_TK.is_cuda:
        torch.addmm(sum_KJ, left_TK.mT, right_TJ, out_dtype=sum_KJ.dtype, out=sum_KJ)
    else:
        sum_KJ += left_TK.mT @ right_TJ
