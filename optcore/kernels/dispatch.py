"""Which of an operator's two forms runs: its Triton kernel on CUDA, its definition in torch anywhere else.

`LATHE_KERNELS=torch` forces the definition. `LATHE_KERNELS=triton` forces the kernel on a GPU, where triton then must
be, and with `TRITON_INTERPRET=1` on a CPU, which no compiled kernel can serve. Nothing else asks where it runs.
"""

import os
from collections.abc import Callable
from functools import cache, update_wrapper
from importlib.util import find_spec
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from optcore.errors import RecipeError
from optcore.kernels.jit import interpreted

SWITCH = "LATHE_KERNELS"
_CHOICES = ("auto", "triton", "torch")

P = ParamSpec("P")
R = TypeVar("R")


class Operator(Generic[P, R]):
    """Called as its definition."""

    def __init__(self, definition: Callable[P, R], launch: Callable[P, R]) -> None:
        update_wrapper(self, definition)
        self.definition = definition
        """Plain torch: what the operator is."""
        self.launch = launch
        """The same by Triton; `NotImplemented` for arguments that no kernel was written for."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if uses_triton(*args, *kwargs.values()):
            made = self.launch(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return self.definition(*args, **kwargs)


def launched_by(launch: Callable[P, R]) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Make a definition an operator that `launch` runs on a GPU."""
    return lambda definition: Operator(definition, launch)


def uses_triton(*arguments: Any) -> bool:
    """Whether kernels run on tensors such as the first of these."""
    choice = os.environ.get(SWITCH, "auto")
    if choice not in _CHOICES:
        raise RecipeError(f"{SWITCH} is {choice!r}", remedy=f"set it to one of {', '.join(_CHOICES)}", field="/")
    if choice == "torch":
        return False
    first = next((one for one in arguments if isinstance(one, torch.Tensor)), None)
    on_gpu = first is not None and first.is_cuda
    return on_gpu or interpreted() if choice == "triton" else on_gpu and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
