"""What is measured of an operator."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch

from optcore.kernels.dispatch import Operator

Limit = Literal["copy", "bf16", "float32"]
"""What bounds a kernel: memory, or products of one type."""


class Work(NamedTuple):
    """A call on tensors that lie ready."""

    run: Callable[[], Any]
    result: Callable[[Any], Any] | None = None
    """From what it returned to what is compared, where that is something else."""


Prepare = Callable[[torch.device], Work]
"""The same tensors at each call."""


class Goal(NamedTuple):
    """The least share of the limit, or how many times faster than a rival."""

    least: float
    rival: str = ""
    text: str = ""
    """For people, where it is not simply the share."""

    def __str__(self) -> str:
        return self.text or (f">= {self.least:g}x {self.rival}" if self.rival else f">= {self.least:.0%}")


class Case(NamedTuple):
    """One call of an operator that the engine makes."""

    kernel: str
    shape: str
    limit: Limit
    work: float
    """Bytes that must move, or FLOP."""
    prepare: Prepare
    goal: Goal | None = None
    tolerance: float = 0.0
    """How far results may be apart, as a norm over the definition's norm; 0: not a bit."""
    rivals: Mapping[str, Prepare] = {}
    has_kernel: bool = True
    """Of our own; some operators call a library on a GPU."""


def times(*sizes: int) -> str:
    """A shape for people."""
    return " x ".join(map(str, sizes))


def compiled(operator: Operator[..., Any], arguments: Callable[[torch.device], tuple[Any, ...]]) -> Prepare:
    """A rival that everybody has: the definition, compiled by torch for these shapes."""

    def prepare(device: torch.device) -> Work:
        given, run = arguments(device), torch.compile(operator.definition, dynamic=False)
        return Work(lambda: run(*given))

    return prepare


def normal(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """The same random numbers at each call."""
    random = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=random, device=device, dtype=dtype) * scale
