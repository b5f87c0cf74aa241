"""The head and the loss as one: logits of a few rows at a time, never of all.

Logits over a large vocabulary outweigh the model's own activations: 8192 rows x 152k tokens are 5 GB in float32, and a
loss keeps three or four such tensors until its backward pass. Here each chunk's gradient is taken while its logits are
at hand, in the forward pass, and only what is as large as the inputs is kept (as in Liger's fused losses,
arXiv:2410.10989).

Shapes: N rows, n rows of a chunk, V vocabulary, H hidden size, G the teacher's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from optcore.kernels.linear_kl import Loss, linear_kl
from optcore.kernels.products import add_product
from optcore.training.divergences import wide

LossOfRows = Callable[[torch.Tensor, slice], torch.Tensor]
"""From logits [n, V] of the rows in a slice to their losses [n]."""
Transform = Callable[[torch.Tensor], torch.Tensor]
"""An elementwise, differentiable function of logits, such as a soft cap."""

CHUNK_rows = 1024
# Of both models' logits of a chunk on a GPU. The weight's gradient, gigabytes in float32, is read and written once a
# chunk: chunks are as large as memory allows, there 2048 rows of 128k tokens in 16 bits.
_CHUNK_bytes_on_gpu = 2**30
# A chunk there is a multiple of the rows that the products' tiles cover.
_TILE_rows = 256


class _Part(NamedTuple):
    """What a chunk's logits are made of."""

    hidden_nH: torch.Tensor
    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None


_Step = Callable[[_Part, slice, bool], Loss]
"""From a chunk, its rows and whether a gradient is wanted to its loss."""


def chunked_linear_loss(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    loss_of_rows: LossOfRows,
    chunk_rows: int = CHUNK_rows,
    bias_V: torch.Tensor | None = None,
    transform: Transform | None = None,
) -> torch.Tensor:
    """Sum over all rows of `loss_of_rows(transform(hidden @ weight^T + bias))`, a float32 scalar.

    The sum, not the mean: the caller divides by the tokens of all ranks and accumulated batches. Gradients go to hidden
    states, weight and bias, and to nothing else that `loss_of_rows` may hold; it is given float32 logits (float64 where
    the inputs are), with autocast off. The products run in the inputs' type, or in autocast's. Without gradients, as in
    a validation pass, it only adds up.
    """

    def step(part: _Part, rows: slice, wanted: bool) -> Loss:
        leaf_nV = wide(linear(*part)).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            total = loss_of_rows(transform(leaf_nV) if transform else leaf_nV, rows).sum()
        return Loss(total.detach(), torch.autograd.grad(total, leaf_nV)[0] if wanted else None)

    return _summed(hidden_NH, weight_VH, bias_V, step, chunk_rows)


def fused_linear_kl(
    student_hidden_NH: torch.Tensor,
    student_weight_VH: torch.Tensor,
    teacher_hidden_NG: torch.Tensor,
    teacher_weight_VG: torch.Tensor,
    chunk_rows: int | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Sum over all rows of tau^2 KL(teacher || student) at temperature tau, a float32 scalar; see above.

    Its gradient by a student's logit is known in closed form, so that no graph is built at all. The teacher gets no
    gradient. Chunks have `CHUNK_rows` rows, or on a GPU as many as a GiB holds of both models' logits.
    """
    if len(student_weight_VH) != len(teacher_weight_VG) or len(student_hidden_NH) != len(teacher_hidden_NG):
        shapes = [tuple(one.shape) for one in (student_hidden_NH, student_weight_VH)]
        others = [tuple(one.shape) for one in (teacher_hidden_NG, teacher_weight_VG)]
        raise ValueError(f"rows and tokens of student and teacher differ: hidden states and weights {shapes}, {others}")
    teacher_NG, weight_VG, _ = _for_products(teacher_hidden_NG, teacher_weight_VG, None)

    def step(part: _Part, rows: slice, wanted: bool) -> Loss:
        return linear_kl(part.hidden_nH, part.weight_VH, teacher_NG[rows], weight_VG, temperature, wanted)

    if chunk_rows is None:
        chunk_rows = rows_at_once(weight_VG)
    return _summed(student_hidden_NH, student_weight_VH, None, step, chunk_rows)


def head_logits(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    transform: Transform | None = None,
) -> Callable[[slice], torch.Tensor]:
    """A model's logits [n, V] of some rows when they are asked for, without a gradient: the teacher's side."""
    hidden, weight, bias = _for_products(hidden_NH, weight_VH, bias_V)

    @torch.no_grad()
    def logits(rows: slice) -> torch.Tensor:
        found_nV = linear(hidden[rows], weight, bias)
        return transform(wide(found_nV)) if transform else found_nV

    return logits


def rows_at_once(weight_VG: torch.Tensor) -> int:
    """How many rows a chunk has, from a head in the type that it is multiplied in."""
    if not weight_VG.is_cuda:
        return CHUNK_rows
    rows = _CHUNK_bytes_on_gpu // (2 * weight_VG.element_size() * len(weight_VG))
    return max(rows // _TILE_rows, 1) * _TILE_rows


def _summed(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, step: _Step, chunk_rows: int
) -> torch.Tensor:
    if chunk_rows < 1:
        raise ValueError(f"a chunk has at least one row, not {chunk_rows}")
    return _LinearLoss.apply(hidden_NH, weight_VH, bias_V, step, chunk_rows, torch.is_grad_enabled())


class _LinearLoss(torch.autograd.Function):
    """Gradients are taken in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        step: _Step,
        chunk_rows: int,
        recording: bool,
    ) -> torch.Tensor:
        inputs = (hidden_NH, weight_VH, bias_V)
        ctx.types = [None if one is None else one.dtype for one in inputs]
        # Whether an input asks for a gradient is known here, but not whether the caller is under no_grad.
        sums = _Sums(*_for_products(*inputs), [recording and wanted for wanted in ctx.needs_input_grad[:3]])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, len(hidden_NH), chunk_rows):
                sums.add(slice(start, min(start + chunk_rows, len(hidden_NH))), step)
        ctx.save_for_backward(sums.by_hidden_NH, sums.by_weight_VH, sums.by_bias_V)
        return sums.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.types, strict=True)
        return (*(None if one is None else _scaled(one, upstream, dtype) for one, dtype in saved), None, None, None)


class _Sums:
    """The loss of the rows so far and its gradients."""

    def __init__(
        self,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        wanted: list[bool],
    ) -> None:
        self.hidden_NH, self.weight_VH, self.bias_V = hidden_NH, weight_VH, bias_V
        self.wanted = any(wanted)
        precise = torch.promote_types(hidden_NH.dtype, torch.float32)
        device = hidden_NH.device
        self.total = torch.zeros((), dtype=precise, device=device)
        # A row's gradient is written once; the weight's is a sum over all chunks.
        self.by_hidden_NH = torch.empty_like(hidden_NH, requires_grad=False) if wanted[0] else None
        self.by_weight_VH = torch.zeros(weight_VH.shape, dtype=precise, device=device) if wanted[1] else None
        self.by_bias_V = torch.zeros(len(weight_VH), dtype=precise, device=device) if wanted[2] else None

    def add(self, rows: slice, step: _Step) -> None:
        """One chunk more."""
        hidden_nH = self.hidden_NH[rows]
        total, gradient_nV = step(_Part(hidden_nH, self.weight_VH, self.bias_V), rows, self.wanted)
        self.total += total
        if gradient_nV is None:
            return
        if self.by_bias_V is not None:
            self.by_bias_V += gradient_nV.sum(0)
        narrow_nV = gradient_nV.to(hidden_nH.dtype)
        if self.by_hidden_NH is not None:
            torch.mm(narrow_nV, self.weight_VH, out=self.by_hidden_NH[rows])
        if self.by_weight_VH is not None:
            add_product(self.by_weight_VH, narrow_nV, hidden_nH)


def _for_products(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Without their history, in the type that a linear layer would multiply in here: autocast's, where it is on."""
    device, dtype = hidden_NH.device.type, hidden_NH.dtype
    inputs = (hidden_NH.detach(), weight_VH.detach(), None if bias_V is None else bias_V.detach())
    if not torch.is_autocast_enabled(device) or dtype == torch.float64:
        return inputs
    hidden, weight, bias = (one if one is None else one.to(torch.get_autocast_dtype(device)) for one in inputs)
    return hidden, weight, bias


def _scaled(gradient: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The product in another type, without a copy of it in the gradient's own in between."""
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
