"""What the scales of a format are stored in: the step that one grid unit is worth, to stored number and back."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from optcore.algorithms.rounding import decode_e8m0, encode_e8m0, round_e4m3

SCALES_PER_LEVEL = 256  # scales that share a second-level multiplier (QLoRA, arXiv:2305.14314, section 3)
_TINY = torch.finfo(torch.float32).tiny
_HALF = torch.finfo(torch.float16)
_HALF_LEAST = 2.0**-24


class Storage(NamedTuple):
    """One kind of stored scale. Stored numbers are comparable and selectable: FP8 goes by its bits."""

    store: Callable[[torch.Tensor], torch.Tensor]
    """Nearest stored numbers of float32 steps; never one that stands for zero."""
    step: Callable[[torch.Tensor], torch.Tensor]
    """Float32 steps of stored numbers."""
    neighbours: tuple[int, ...] = ()
    """Where stored numbers are codes of a coarse format: how far around a code a search looks."""
    codes: tuple[int, int] = (0, 0)
    """Smallest and largest such code."""


def own_type(dtype: torch.dtype) -> Storage:
    """Scales in the checkpoint's own floating-point type."""
    return Storage(lambda step: nonzero(step.to(dtype)), torch.Tensor.float)


def e4m3(divisor: torch.Tensor) -> Storage:
    """FP8 codes of steps times a divisor. 8 codes are an octave: -5 to +7 spans x0.65 to x1.75 and holds the choice
    between 4 and 6 as a block's largest value (x1.5, arXiv:2512.02010)."""

    def store(step: torch.Tensor) -> torch.Tensor:
        return nonzero(round_e4m3(step * divisor)).view(torch.uint8)

    def steps(codes: torch.Tensor) -> torch.Tensor:
        return codes.view(torch.float8_e4m3fn).float() / divisor

    return Storage(store, steps, tuple(range(-5, 8)), (1, 0x7E))


def e8m0(reach: float) -> Storage:
    """Exponents of powers of two, for elements whose largest binade is `reach` to twice that. The exponents beside the
    rule's choice are worth trying."""
    return Storage(lambda step: encode_e8m0(step * reach, reach), decode_e8m0, (-1, 1), (0, 254))


def double(second: torch.Tensor, mean: torch.Tensor) -> Storage:
    """int8 codes of steps less their mean, in units that 256 of them share."""

    def store(step: torch.Tensor) -> torch.Tensor:
        deviation = (step - mean) / _in_rows(second, step)
        return deviation.round().clamp(-127, 127).to(torch.int8)

    return Storage(store, lambda codes: double_step(codes, second, mean))


def super_scaled(super_scale: torch.Tensor, codes: tuple[int, int]) -> Storage:
    """Codes of steps in units that a super-block shares, float16 [N, K/256]; never zero."""
    low, high = codes

    def units(like: torch.Tensor) -> torch.Tensor:
        return super_scale.float().repeat_interleave(like.shape[1] // super_scale.shape[1], 1)

    def store(step: torch.Tensor) -> torch.Tensor:
        code = (step / units(step)).round_().clamp_(low, high)
        return torch.where(code == 0, 1, code).to(torch.int8 if low < 0 else torch.uint8)

    return Storage(store, lambda codes: codes.float() * units(codes))


def half(step: torch.Tensor) -> torch.Tensor:
    """float16 of steps: what overflows saturates, and what would be zero gets the smallest subnormal number, at which
    a small block keeps some of its values."""
    magnitude = step.abs().clamp_(_HALF_LEAST, _HALF.max)
    return torch.copysign(magnitude, step + 0.0).to(torch.float16)  # minus zero counts as zero


def second_level(step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multipliers [ceil(n / 256)] and mean [1] that n steps are double-quantized with."""
    mean = step.mean().reshape(1)
    deviations = torch.nn.functional.pad((step - mean).abs().flatten(), (0, -step.numel() % SCALES_PER_LEVEL))
    return nonzero(deviations.view(-1, SCALES_PER_LEVEL).amax(1) / 127), mean


def double_step(codes: torch.Tensor, second: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Steps of double-quantized scales, float32, shaped like the codes and kept positive."""
    return (codes.float() * _in_rows(second, codes) + mean).clamp(min=_TINY)


def nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Blocks of zeros get the type's epsilon, so that nothing divides by zero (compressed-tensors does the same)."""
    return torch.where(scale.float() == 0, torch.finfo(scale.dtype).eps, scale.float()).to(scale.dtype)


def _in_rows(second: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return second.repeat_interleave(SCALES_PER_LEVEL)[: like.numel()].view(like.shape)
