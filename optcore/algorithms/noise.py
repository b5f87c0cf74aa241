"""How large the rounding error of a layer's input will be, channel by channel, from moments alone.

The model: a channel is normal with the mean square that was measured, channels are independent, and a scale made at run
time fits the largest value that shares it. Real inputs have heavier tails, so this ranks scales; it does not replace a
measurement.
"""

import math
from functools import lru_cache

import torch

from optcore.algorithms.rounding import grid_of
from optcore.schemes import QuantArgs

_POINTS = 129
_RATIOS = 97
_BINADE_PARTS = 8


def input_noise(square_K: torch.Tensor, amax_K: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """Expected squared rounding error of each input channel [K], from its mean square and its largest magnitude."""
    if not args.dynamic:
        largest_K = amax_K.amax().expand_as(square_K)
    else:
        size = args.group_size if args.group_size and len(square_K) % args.group_size == 0 else len(square_K)
        largest_K = _largest_square(square_K.view(-1, size)).sqrt().repeat_interleave(size)
    largest_K = largest_K.clamp(min=torch.finfo(torch.float32).tiny)
    reaches = _reaches(args)
    return sum(_noise(square_K, largest_K / reach, args, max(reaches)) for reach in reaches) / len(reaches)


def _reaches(args: QuantArgs) -> tuple[float, ...]:
    """Where on the grid the largest value may land, all equally likely.

    A power of two as scale leaves it anywhere in a binade, up to 7/8 of the next (see `encode_e8m0`).
    """
    reach = grid_of(args).reach
    if args.scale_type != "e8m0":
        return (reach,)
    mantissas = (2 ** ((place + 0.5) / _BINADE_PARTS) for place in range(_BINADE_PARTS))
    binade = 2.0 ** math.floor(math.log2(reach))
    return tuple(binade * (mantissa if mantissa < 1.75 else mantissa / 2) for mantissa in mantissas)


def _noise(square_K: torch.Tensor, step_K: torch.Tensor, args: QuantArgs, largest: float) -> torch.Tensor:
    return step_K.square() * _unit_noise(square_K.sqrt() / step_K, args, largest)


def _largest_square(square_GK: torch.Tensor) -> torch.Tensor:
    """E[max over a group of x^2] for independent normals: the integral of 2 m P(max > m) over m, one per group."""
    deviation_GK = square_GK.clamp(min=1e-30).sqrt()
    widest = math.sqrt(2 * math.log(2 * square_GK.shape[1])) + 4
    place = torch.linspace(0, widest, _POINTS, device=square_GK.device)
    m_GP = deviation_GK.amax(1, keepdim=True) * place
    below_GP = torch.zeros_like(m_GP)
    for deviation_GC in deviation_GK.split(64, 1):  # a part at a time: this is [G, P, part]
        below_GP += torch.erf(m_GP[:, :, None] / (deviation_GC[:, None, :] * math.sqrt(2))).log().sum(-1)
    return torch.trapezoid(2 * m_GP * (1 - below_GP.exp()), m_GP)


def _unit_noise(ratio_K: torch.Tensor, args: QuantArgs, largest: float) -> torch.Tensor:
    """E[(round(z) - z)^2] on the format's grid for normal z whose deviation is `ratio_K` steps, cut at `largest`."""
    logs, noise = (table.to(ratio_K.device) for table in _noise_table(args.bits, args.type, largest))
    wanted = ratio_K.clamp(min=torch.finfo(torch.float32).tiny).log2().clamp(logs[0], logs[-1])
    upper = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
    share = (wanted - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
    return torch.exp2(torch.lerp(noise[upper - 1], noise[upper], share))


@lru_cache
def _noise_table(bits: int, type_: str, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms to base two of deviations in steps, and of the mean squared rounding error there."""
    grid = grid_of(QuantArgs.model_validate({"bits": bits, "type": type_, "strategy": "tensor"}))
    logs = torch.linspace(-12, math.log2(grid.reach) + 1, _RATIOS)
    z = torch.linspace(-6, 6, 4801)
    density = torch.exp(-z.square() / 2)
    values = (torch.exp2(logs)[:, None] * z).clamp(-largest, largest)
    error = (grid.round(values) - values).square()
    return logs, ((error * density).sum(1) / density.sum()).log2()
