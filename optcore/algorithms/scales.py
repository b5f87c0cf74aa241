"""Scales of weights: by plain maximum, or by the smallest squared rounding error (MSE search).

Shapes: W is [N, K] (outputs, inputs); g values along K share a scale. Scales are stored as
`tensor` [1], `channel` [N, 1], `group` [N, K/g], `tensor_group` [N, K/g] in E4M3 with one float32 divisor [1].
Layers that an engine fuses (q/k/v, gate/up) are passed together: what is one number per tensor is then one per group.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch

from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX, Grid, grid_of, round_e4m3
from optcore.schemes import QuantArgs

Method = Literal["max", "mse"]

# Multiples of the max scale that the search tries. Below 1 clips the largest value to refine the rest; above 1 helps
# floating-point grids, whose error depends on where in a binade the values fall.
_INT_FACTORS = torch.arange(0.40, 1.061, 0.02)
_FLOAT_FACTORS = torch.arange(0.70, 1.301, 0.02)
# E4M3 codes around the max scale's: one octave is 8 codes, so this spans x0.65 to x1.75 and holds the "four over six"
# choice (x1.5) of arXiv:2512.02010.
_CODE_OFFSETS = range(-5, 8)
# The search may raise a block's scale by up to 1.75, so the largest block must not sit at 448 already.
_MSE_NORMALISER = 256.0
_PART_values = 2**24


class Scales(NamedTuple):
    """The scales of one weight, as they are stored."""

    scale: torch.Tensor
    global_scale: torch.Tensor | None = None
    """NVFP4's second level, a divisor: the step is `scale / global_scale`."""

    def step(self) -> torch.Tensor:
        """What one grid unit is worth, float32, shaped like `scale`."""
        step = self.scale.float()
        return step if self.global_scale is None else step / self.global_scale


def blocks(weight_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """View of W as [rows, groups, values that share a scale]."""
    if args.strategy == "tensor":
        return weight_NK.reshape(1, 1, -1)
    if args.strategy == "channel":
        return weight_NK.unsqueeze(1)
    return weight_NK.unflatten(1, (-1, args.group_size or weight_NK.shape[1]))


def fake_quantize(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    """The weight that the stored codes and scales stand for. float32 [N, K]."""
    step = scales.step().unsqueeze(-1)
    return (grid_of(args).round(blocks(weight_NK, args) / step) * step).reshape(weight_NK.shape)


def in_steps(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> torch.Tensor:
    """The weight in grid units, not rounded yet. float32 [N, K]."""
    return (blocks(weight_NK, args) / scales.step().unsqueeze(-1)).reshape(weight_NK.shape)


def find_scales(weights: Sequence[torch.Tensor], args: QuantArgs, method: Method, dtype: torch.dtype) -> list[Scales]:
    """Scales of the weights of one fused group (float32 [N_i, K] each), rounded to the `dtype` they are stored in.

    Codes are computed from the rounded scale, so every engine that reads it decodes exactly what we simulated.
    """
    if args.strategy == "tensor":
        return _per_tensor(weights, args, method, dtype)
    if args.strategy == "tensor_group":
        return _two_level(weights, args, method)
    return [Scales(_per_block(weight, args, method, dtype)) for weight in weights]


def _per_tensor(weights: Sequence[torch.Tensor], args: QuantArgs, method: Method, dtype: torch.dtype) -> list[Scales]:
    grid = grid_of(args)
    joint = torch.cat([weight.reshape(-1) for weight in weights]).reshape(1, 1, -1)
    plain = _nonzero((joint.abs().amax(-1) / grid.reach).to(dtype))
    scale = plain if method == "max" else _search(joint, plain, _factors(args), grid)
    return [Scales(scale.reshape(1)) for _ in weights]


def _per_block(weight: torch.Tensor, args: QuantArgs, method: Method, dtype: torch.dtype) -> torch.Tensor:
    grid, values = grid_of(args), blocks(weight, args)
    plain = _nonzero((values.abs().amax(-1) / grid.reach).to(dtype))
    return plain if method == "max" else _search(values, plain, _factors(args), grid)


def _factors(args: QuantArgs) -> torch.Tensor:
    return _INT_FACTORS if args.type == "int" else _FLOAT_FACTORS


def _search(values: torch.Tensor, plain: torch.Tensor, factors: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Best multiple of the plain scales by squared error; ties keep the plain scale. Shapes [R, G, g] and [R, G]."""
    candidates = (_nonzero((plain.float() * factor).to(plain.dtype)) for factor in factors.tolist())
    return _best(values, plain, plain.float(), ((c, c.float()) for c in candidates), grid)


def _two_level(weights: Sequence[torch.Tensor], args: QuantArgs, method: Method) -> list[Scales]:
    amax = max(weight.abs().amax().item() for weight in weights)
    normaliser = E4M3_MAX if method == "max" else _MSE_NORMALISER
    divisor = torch.tensor([normaliser * E2M1_MAX / amax if amax else 1.0], device=weights[0].device)
    found = []
    for weight in weights:
        values = blocks(weight, args)
        plain = _nonzero(round_e4m3(values.abs().amax(-1) / E2M1_MAX * divisor))
        best = plain if method == "max" else _search_codes(values, plain, divisor, grid_of(args))
        found.append(Scales(best, divisor))
    return found


def _search_codes(values: torch.Tensor, plain: torch.Tensor, divisor: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Best E4M3 code near the plain one by squared error: neighbouring codes are neighbouring values."""
    codes = plain.view(torch.uint8).to(torch.int16)
    largest = torch.tensor(E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).item()
    shifted = ((codes + offset).clamp(1, largest).to(torch.uint8).view(torch.float8_e4m3fn) for offset in _CODE_OFFSETS)
    return _best(values, plain, plain.float() / divisor, ((c, c.float() / divisor) for c in shifted), grid)


def _best(
    values: torch.Tensor,
    plain: torch.Tensor,
    plain_step: torch.Tensor,
    candidates: Iterable[tuple[torch.Tensor, torch.Tensor]],
    grid: Grid,
) -> torch.Tensor:
    """Of `(stored, step)` candidates, per block, the stored one with the least squared error."""
    best, best_error = plain.clone(), _squared_error(values, plain_step, grid)
    for stored, step in candidates:
        error = _squared_error(values, step, grid)
        better = error < best_error
        best = torch.where(better, stored.float(), best.float()).to(plain.dtype)
        best_error = torch.where(better, error, best_error)
    return best


def _squared_error(values: torch.Tensor, step: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Per block, a part at a time: the temporaries of a large weight would outweigh it several times."""
    step = step.unsqueeze(-1)
    if values.shape[0] == 1:  # one scale for the whole tensor: its parts add up
        parts = values.split(_PART_values, dim=-1)
        return torch.stack([_part_error(part, step, grid) for part in parts]).sum(0)
    rows = max(1, _PART_values // values[0].numel())
    pairs = zip(values.split(rows), step.split(rows), strict=True)
    return torch.cat([_part_error(part, own, grid) for part, own in pairs])


def _part_error(values: torch.Tensor, step: torch.Tensor, grid: Grid) -> torch.Tensor:
    return (grid.round(values / step) * step - values).square().sum(-1)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Blocks of zeros get the type's epsilon, so that nothing divides by zero (compressed-tensors does the same)."""
    return torch.where(scale.float() == 0, torch.finfo(scale.dtype).eps, scale.float()).to(scale.dtype)
