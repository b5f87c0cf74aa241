"""Weights to codes and back: the one arithmetic that simulation, files and engines share.

Codes are int8 in [-2^(b-1), 2^(b-1) - 1] for integers, float8_e4m3fn for FP8, uint8 in 0..15 for FP4, NF4 and IQ4,
uint8 in 0..2^b - 1 above a minimum. W is float32 [N, K]; a code stands for (value(code) - zero point) * step, or for
value(code) * step + minimum.
"""

import torch

from optcore.algorithms.lattice import lattice
from optcore.algorithms.rounding import grid_of
from optcore.algorithms.scales import Scales
from optcore.schemes import QuantArgs

_PART_values = 2**17


def encode(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    """Codes [N, K] of the grid values nearest to W."""
    if args.scale_type not in ("f16", "super"):
        return _encoded(weight_NK, scales, args)
    # All that these scales consist of goes by rows: some at a time stay in the cache, and reuse each other's memory.
    at_once = max(1, _PART_values // weight_NK.shape[1])
    fields = [part if part is None else part.split(at_once) for part in scales]
    rows = weight_NK.split(at_once)
    parts = [Scales(*(part if part is None else part[i] for part in fields)) for i in range(len(rows))]
    return torch.cat([_encoded(part_NK, part, args) for part_NK, part in zip(rows, parts, strict=True)])


def decode(codes_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    """The weight that codes stand for, float32 [N, K]."""
    return lattice(scales, args, _shape(codes_NK)).from_steps(grid_of(args).decode(codes_NK))


def fake_quantize(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    """The weight as it will be decoded, float32 [N, K]: `decode(encode(W))` bit for bit."""
    return decode(encode(weight_NK, scales, args), scales, args)


def _encoded(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    points = lattice(scales, args, _shape(weight_NK))
    return points.grid.encode(points.in_steps(weight_NK))


def _shape(matrix: torch.Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns
