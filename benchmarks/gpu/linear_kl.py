"""The head and its divergence from a teacher's as one, forward and backward.

A product of a row is 2 d V FLOP: three are the student's, one is the teacher's.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.case import Case, Goal, Work, normal, times
from benchmarks.gpu.sizes import Sizes
from optcore.training.linear_loss import fused_linear_kl


def cases(sizes: Sizes) -> Iterator[Case]:
    """One head."""
    rows, hidden, tokens = sizes.head
    yield Case(
        "linear + KL, both ways", times(rows, hidden, tokens), "bf16", 8 * rows * hidden * tokens,
        partial(_prepare, rows, hidden, tokens), Goal(0.6), tolerance=4e-3,  # a bit of bfloat16
        rivals={"Liger JSD at beta 0": partial(_liger, rows, hidden, tokens)},
    )  # fmt: skip


def _inputs(rows: int, hidden: int, tokens: int, device: torch.device) -> list[torch.Tensor]:
    """Hidden states and weight of the student, which learn, and of its teacher, which is much alike."""
    teacher = normal(device, rows, hidden), normal(device, tokens, hidden, scale=0.02)
    student = [one + normal(device, *one.shape, 1, scale=0.1).squeeze(-1) * one.std() for one in teacher]
    return [*(one.requires_grad_() for one in student), *teacher]


def _prepare(rows: int, hidden: int, tokens: int, device: torch.device) -> Work:
    inputs = _inputs(rows, hidden, tokens, device)

    def run() -> list[torch.Tensor]:
        loss = fused_linear_kl(*inputs)
        return [loss, *torch.autograd.grad(loss, inputs[:2])]

    return Work(run)


def _liger(rows: int, hidden: int, tokens: int, device: torch.device) -> Work:
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    inputs = _inputs(rows, hidden, tokens, device)

    def run() -> None:
        loss = LigerFusedLinearJSDFunction.apply(*inputs, None, 0.0, -100, 1.0)
        torch.autograd.grad(loss, inputs[:2])

    return Work(run)
