"""What rounding costs after adapters were merged: the merged model in high precision, against its own codes.

Shapes: B windows of T tokens, N rows that count, N outputs and K inputs of a linear layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from optcore.training.fake_quant import FakeQuantLinear
from optcore.training.head import find_head
from optcore.training.student import Student
from optcore.training.teacher import LiveTeacher, Rows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.training.loop import Loop
    from optcore.training.trainee import Trainee


def note_merge(run: "Run", student: Student, trainee: "Trainee", loop: "Loop") -> None:
    """Measure KL(merged || merged and rounded) on the validation windows, nats a token, and say it."""
    with trainee.facing(Unrounded(student)):
        kl = loop.measured().get("kl")
    if kl is not None:
        run.results["merge"] = {"kl": kl}
        run.metric("merge_kl", kl)


class Unrounded(LiveTeacher):
    """A student without rounding in its linear layers, as a teacher to itself."""

    def __init__(self, student: Student) -> None:
        self.decoder, self.model = student.decoder, student.model
        self._head, self._keeps_layers = find_head(student.model), False
        self._student = student

    @torch.no_grad()
    def rows(self, inputs: dict[str, torch.Tensor], counts_BT: torch.Tensor, windows: list[int]) -> Rows:
        """See `Teacher`."""
        with _unrounded(list(self._student.linears.values())):
            return super().rows(inputs, counts_BT, windows)


@contextmanager
def _unrounded(modules: list[FakeQuantLinear]) -> Iterator[None]:
    handles = [module.register_forward_hook(_in_high_precision) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_high_precision(module: FakeQuantLinear, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
    return linear(given[0], module.merged().to(given[0].dtype), module.bias)
