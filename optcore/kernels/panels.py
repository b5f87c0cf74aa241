"""How kernels that treat values or groups of them one by one cut a tensor into programs.

A *panel* is a stretch of a row: a power of two of columns, a multiple of what belongs together. A program takes as many
as give its threads a few 16-byte loads each.
"""

from typing import NamedTuple

import torch

# Where less belongs together: two 16-byte loads of a warp in bfloat16, four in float32.
_WIDTH_columns = 512


class Panels(NamedTuple):
    """A tensor [..., K] in panels."""

    rows_TK: torch.Tensor
    """A view where rows lie evenly apart; values of a row lie side by side."""
    columns: int
    width: int
    height: int
    """Panels of a program."""
    per_row: int
    panels: int

    @property
    def programs(self) -> int:
        """That cover all panels."""
        return -(-self.panels // self.height)


def panels_of(x: torch.Tensor, together: int, tile: int) -> Panels:
    """Panels of x [..., K] for programs of about `tile` values, `together` (a power of two) never parted."""
    columns = x.shape[-1]
    rows_TK = x.reshape(-1, columns)
    rows_TK = rows_TK if rows_TK.stride(1) == 1 else rows_TK.contiguous()
    width = max(together, min(_WIDTH_columns, power_of_two(columns)))
    per_row = -(-columns // width)
    return Panels(rows_TK, columns, width, max(1, tile // width), per_row, per_row * len(rows_TK))


def power_of_two(size: int) -> int:
    """The smallest that is at least `size`; 16 at least, one load of a thread."""
    return max(16, 1 << (size - 1).bit_length())


def warps_of(values: int) -> int:
    """Warps of a program of so many values: 32 a thread, four to eight 16-byte loads, as long as there are as many."""
    return min(16, max(4, values // 1024))
