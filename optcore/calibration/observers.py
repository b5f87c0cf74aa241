"""What is measured while calibration text runs through a layer."""

import re
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

_EXPERT = re.compile(r"\.experts\.\d+\.")


class InputObserver:
    """Largest magnitudes of the inputs of linear layers. All experts of a layer share one, whoever got the tokens."""

    def __init__(self, modules: dict[str, nn.Linear]) -> None:
        self._modules = modules
        self._amax: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def amax(self, path: str) -> float:
        """The largest magnitude seen; 0 where nothing was."""
        return float(self._amax.get(_shared(path), 0.0))

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            hook = lambda _, args, path=path: self._note(path, args[0])  # noqa: E731
            self._handles.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _note(self, path: str, given: torch.Tensor) -> None:
        seen = given.abs().amax().float()
        key = _shared(path)
        self._amax[key] = torch.maximum(self._amax[key], seen) if key in self._amax else seen


def _shared(path: str) -> str:
    return _EXPERT.sub(".experts.*.", path)
