"""Triton functions that are compiled when they are first needed: no module that holds one imports triton.

    @device                                  # callable from kernels, as in `triton.jit`
    def doubled(x):
        return x * 2

    @kernel                                  # launched as `_double[grid](x, y, count, BLOCK=256)`
    def _double(x_ptr, y_ptr, count, BLOCK: tl.constexpr): ...

Their bodies find triton's language as the global `tl`, which a module imports for type checkers only; constants are
known by their annotation, which must stay text (`from __future__ import annotations`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import Any

import torch

from optcore.kernels.counting import count_launch

_LAUNCHING = RLock()
"""Threads that use a GPU each launch one after the other: triton's compiler and its caches know of no threads."""


class Device:
    """A function that kernels call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """From the host it cannot be called; within a kernel its name stands for what triton made of it."""
        raise TypeError(f"{self.function.__name__} is for kernels")

    @property
    def compiled(self) -> Any:
        """The triton function, made now if it was not yet."""
        if self._compiled is None:
            import triton
            import triton.language as tl

            self._compiled = triton.jit(self.function)
            space = self.function.__globals__
            space["tl"] = tl
            # What triton finds under a name, it must be able to call.
            space.update({name: one.compiled for name, one in list(space.items()) if type(one) is Device})
        return self._compiled


class Kernel(Device):
    """A function that is launched over a grid of programs."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            count_launch(self.function.__name__.lstrip("_"), tensors)
            with _LAUNCHING, _on(tensors[0].device):
                self.compiled[grid](*arguments, **constants)

        return launch


def device(function: Callable[..., Any]) -> Device:
    """Mark a function that kernels call."""
    return Device(function)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Mark a function that is launched over a grid of programs."""
    return Kernel(function)


def interpreted() -> bool:
    """Whether kernels run in triton's interpreter: tiles should then be small, and bfloat16 be widened at once."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _on(place: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the one where the tensors are."""
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()
