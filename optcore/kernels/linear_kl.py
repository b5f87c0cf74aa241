"""Divergence of a student's predictions from a teacher's for a few rows, from both models' last hidden states.

The products are the library's. What lies between them is one kernel, a program a row, which reads both models' logits
twice in their own type and widens them in registers: once for the divergence, once for the gradient, which it writes
over the student's logits in the type that the next products read. So two tensors [n, V] of that type are all there is,
where the definition needs three in float32, and ten bytes a pair of 16-bit logits are moved.

With both sums of exponentials relative to their greatest logit, Z_p of the teacher's t and Z_q of the student's s,

    KL = sum(e^((t - max t) / tau) (t - s)) / (tau Z_p) - (max t - max s) / tau + log(Z_q / Z_p),

so that one read is enough. Sums of exponentials run in another order than the definition's: results differ in the last
bits of float32.

Legend: n rows, V vocabulary (in the kernel: the part of it that is handled at once), H hidden size, G the teacher's.
"""

from __future__ import annotations  # the kernels' constants are annotated with a module that is not imported

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import linear, log_softmax

from optcore.kernels.dispatch import launched_by
from optcore.kernels.jit import device, interpreted, kernel
from optcore.kernels.numbers import divided, round_bf16
from optcore.training.divergences import wide

if TYPE_CHECKING:
    import triton.language as tl

_TYPES = {torch.float32, torch.bfloat16, torch.float16}
# Elements that logits' rows lie apart are a multiple of this: vocabularies such as 50257 would otherwise leave both
# the kernel and the products to load single elements.
_APART_elements = 16


class Loss(NamedTuple):
    """Of some rows."""

    total: torch.Tensor
    """The sum of the rows' losses, a scalar."""
    gradient_nV: torch.Tensor | None
    """That sum's, by the student's logits; None where nobody wants it."""


# mypy: disable-error-code="no-untyped-def"


@kernel
def _kl_rows(
    student_ptr, teacher_ptr, loss_ptr, columns, apart, temperature, sharpness,
    GRADIENT: tl.constexpr, V: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One row: its loss and then, over the student's logits, its gradient. `sharpness` is log2(e) / temperature."""
    row = tl.program_id(0)
    student_ptr += row.to(tl.int64) * apart
    teacher_ptr += row.to(tl.int64) * apart
    # Logits mean nothing but for a constant, each model's own: it is taken off before the two are compared.
    first_p, first_q = tl.load(teacher_ptr).to(tl.float32), tl.load(student_ptr).to(tl.float32)
    # Each lane has its own running maximum, so that nothing waits for the others before the end of the row.
    most_p_V = tl.full((V,), -1.0e30, tl.float32)
    most_q_V = most_p_V
    sum_p_V = tl.zeros((V,), tl.float32)
    sum_q_V, gap_V = sum_p_V, sum_p_V
    for start in tl.range(0, columns, V, num_stages=AHEAD):
        place_V = start + tl.arange(0, V)
        t_V, s_V = _logits(teacher_ptr, place_V, columns, apart), _logits(student_ptr, place_V, columns, apart)
        most_p_V, old_V, new_V = _raised(most_p_V, t_V, sharpness)
        sum_p_V = sum_p_V * old_V + new_V
        gap_V = gap_V * old_V + new_V * ((t_V - first_p) - (s_V - first_q))
        most_q_V, old_V, new_V = _raised(most_q_V, s_V, sharpness)
        sum_q_V = sum_q_V * old_V + new_V
    most_p, most_q = tl.max(most_p_V, 0), tl.max(most_q_V, 0)
    part_p_V = tl.exp2((most_p_V - most_p) * sharpness)
    sum_p, gap = tl.sum(sum_p_V * part_p_V, 0), tl.sum(gap_V * part_p_V, 0)
    sum_q = tl.sum(sum_q_V * tl.exp2((most_q_V - most_q) * sharpness), 0)
    gap = divided(gap, sum_p) + ((first_p - most_p) - (first_q - most_q))
    nats = gap + temperature * tl.log(divided(sum_q, sum_p))
    tl.store(loss_ptr + row, temperature * nats)
    if GRADIENT:
        times_p, times_q = divided(temperature, sum_p), divided(temperature, sum_q)
        last = (columns - 1) // V * V
        for back in tl.range(0, columns, V, num_stages=AHEAD):  # from the end, of which the cache still holds something
            place_V = last - back + tl.arange(0, V)
            t_V, s_V = _logits(teacher_ptr, place_V, columns, apart), _logits(student_ptr, place_V, columns, apart)
            p_V, q_V = tl.exp2((t_V - most_p) * sharpness) * times_p, tl.exp2((s_V - most_q) * sharpness) * times_q
            _store(student_ptr + place_V, q_V - p_V, place_V < apart)


@device
def _logits(row_ptr, place_V, columns, apart):
    """A part of a row in float32; what is behind its end is lower than any logit."""
    # Masked where the padding ends, not the row: there masks are alike for whole vectors.
    found_V = tl.load(row_ptr + place_V, mask=place_V < apart, other=0.0).to(tl.float32)
    return tl.where(place_V < columns, found_V, -1.0e30)


@device
def _raised(most_V, x_V, sharpness):
    """Running maxima with one logit more each, and by what the sums until now and this logit's one are multiplied."""
    above_V = x_V > most_V
    smaller_V = tl.exp2(-tl.abs(x_V - most_V) * sharpness)  # the other of the two factors is 1
    return tl.maximum(most_V, x_V), tl.where(above_V, smaller_V, 1.0), tl.where(above_V, 1.0, smaller_V)


@device
def _store(place_ptr, value_V, mask_V):
    if place_ptr.dtype.element_ty == tl.bfloat16:
        value_V = round_bf16(value_V)
    tl.store(place_ptr, value_V.to(place_ptr.dtype.element_ty), mask=mask_V)


def _launch(
    student_nH: torch.Tensor,
    student_weight_VH: torch.Tensor,
    teacher_nG: torch.Tensor,
    teacher_weight_VG: torch.Tensor,
    temperature: float,
    wants_gradient: bool,
) -> Loss:
    if not {student_nH.dtype, teacher_nG.dtype} <= _TYPES:
        return NotImplemented
    student_nV, teacher_nV = _logits_of(student_nH, student_weight_VH), _logits_of(teacher_nG, teacher_weight_VG)
    losses_n = torch.empty(len(student_nH), dtype=torch.float32, device=student_nH.device)
    # Two rows share a multiprocessor, one computing while the other's sums meet: that leaves a thread 64 registers,
    # room for what four elements sum up. Three parts of each row are on their way meanwhile, 48 KiB of 16-bit logits.
    part = 256 if interpreted() else 2048
    _kl_rows[(len(student_nH),)](
        student_nV, teacher_nV, losses_n, student_nV.shape[1], student_nV.stride(0),
        float(temperature), math.log2(math.e) / temperature, GRADIENT=wants_gradient, V=part, AHEAD=4,
        num_warps=16, maxnreg=64,
    )  # fmt: skip
    return Loss(losses_n.sum(), student_nV if wants_gradient else None)


@launched_by(_launch)
def linear_kl(
    student_nH: torch.Tensor,
    student_weight_VH: torch.Tensor,
    teacher_nG: torch.Tensor,
    teacher_weight_VG: torch.Tensor,
    temperature: float,
    wants_gradient: bool,
) -> Loss:
    """The sum over rows of tau^2 KL(teacher || student) at temperature tau, in nats, float32 (float64 stays).

    Logits are `hidden @ weight^T`, finite and above -1e30. The gradient by a student's logit is in closed form
    tau (q - p): tau^2 of the loss over the tau that divides the logit. It comes in the type of the student's hidden
    states.
    """
    # At no time are there more than three tensors of the rows' logits: none of these is given a second name.
    log_q_nV = log_softmax(_tempered(wide(linear(student_nH, student_weight_VH)), temperature), -1)
    log_p_nV = log_softmax(_tempered(wide(linear(teacher_nG, teacher_weight_VG)), temperature), -1)
    p_nV = log_p_nV.exp()
    total = temperature**2 * log_p_nV.sub_(log_q_nV).mul_(p_nV).sum()
    if not wants_gradient:
        return Loss(total, None)
    return Loss(total, log_q_nV.exp_().sub_(p_nV).mul_(temperature).to(student_nH.dtype))


def _logits_of(hidden_nH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    columns = len(weight_VH)
    apart = -(-columns // _APART_elements) * _APART_elements
    logits_nV = torch.empty(len(hidden_nH), apart, dtype=hidden_nH.dtype, device=hidden_nH.device)[:, :columns]
    return torch.mm(hidden_nH, weight_VH.mT, out=logits_nV)


def _tempered(logits_nV: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits_nV if temperature == 1 else logits_nV.div_(temperature)
