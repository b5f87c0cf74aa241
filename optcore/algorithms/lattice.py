"""The points that a quantized weight can take: all that a rounding algorithm needs to know of a format."""

from typing import NamedTuple

import torch

from optcore.algorithms.blocks import spread
from optcore.algorithms.rounding import Grid, grid_of
from optcore.algorithms.scales import Scales
from optcore.schemes import QuantArgs


class Lattice(NamedTuple):
    """For each weight the points (grid value - zero) * step, or grid value * step + offset."""

    step_NK: torch.Tensor
    """float32; a broadcast view where a row or the tensor shares a step. Negative steps occur."""
    zero_NK: torch.Tensor | None
    """float32 zero points, in grid units."""
    grid: Grid
    offset_NK: torch.Tensor | None = None
    """float32, what the grid's zero stands for: formats with a minimum have one, and no zero points."""

    def columns(self, index: torch.Tensor | slice) -> "Lattice":
        """The lattice of a subset or permutation of the inputs."""
        zero = None if self.zero_NK is None else _columns(self.zero_NK, index)
        offset = None if self.offset_NK is None else _columns(self.offset_NK, index)
        return Lattice(_columns(self.step_NK, index), zero, self.grid, offset)

    def nearest(self, values_NK: torch.Tensor) -> torch.Tensor:
        """The nearest points, float32: what encoding and decoding the values gives."""
        return self.from_steps(self.grid.round(self.in_steps(values_NK)))

    def in_steps(self, values_NK: torch.Tensor) -> torch.Tensor:
        """Values in grid units, not rounded yet."""
        if self.offset_NK is not None:
            return (values_NK - self.offset_NK).div_(self.step_NK)
        scaled = values_NK / self.step_NK
        return scaled if self.zero_NK is None else scaled + self.zero_NK

    def from_steps(self, values_NK: torch.Tensor) -> torch.Tensor:
        """Grid values to weights, in the order of operations of the engines that read them."""
        if self.offset_NK is not None:
            return (values_NK * self.step_NK).add_(self.offset_NK)
        return (values_NK if self.zero_NK is None else values_NK - self.zero_NK) * self.step_NK


def lattice(scales: Scales, args: QuantArgs, shape_NK: tuple[int, int]) -> Lattice:
    """The lattice of a weight [N, K] with its scales."""
    zero = None if scales.zero_point is None else spread(scales.zero_point.float(), args, shape_NK)
    offset = None if (floor := scales.offset()) is None else spread(floor, args, shape_NK)
    return Lattice(spread(scales.step(), args, shape_NK), zero, grid_of(args), offset)


def _columns(matrix_NK: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor:
    """Columns of a matrix; one that repeats its only column stays a view."""
    if matrix_NK.stride(1) == 0 and isinstance(index, torch.Tensor):
        return matrix_NK[:, :1].expand(-1, len(index))
    return matrix_NK[:, index]
