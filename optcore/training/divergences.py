"""How far a student's predictions are from a teacher's, row by row.

Shapes: N rows (predicted tokens), V vocabulary, k kept tokens. Logits are [N, V] of any floating type and finite;
results are [N], in nats, computed in float32 (float64 stays). With a temperature, logits are divided by it and the
result is multiplied by its square, which keeps the size of gradients (arXiv:1503.02531).
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional


class TopK(NamedTuple):
    """A teacher's most likely tokens for each row, and by what is missing, the mass of all others."""

    ids: torch.Tensor
    """Token ids, int64 [N, k], no id twice in a row."""
    probabilities: torch.Tensor
    """Theirs, [N, k], as the teacher gave them: they do not add up to 1."""
    temperature: float = 1.0
    """What the teacher's logits were divided by."""

    @property
    def rest(self) -> torch.Tensor:
        """The mass of all other tokens [N]; not below 0, where rounded probabilities add up to more than 1."""
        return (1 - wide(self.probabilities).sum(-1)).clamp(min=0)

    def rows(self, which: slice | torch.Tensor) -> "TopK":
        """Some of the rows: a slice, a mask [N] or indices."""
        return TopK(self.ids[which], self.probabilities[which], self.temperature)

    def to(self, device: torch.device | str) -> "TopK":
        """The same on a device."""
        return TopK(self.ids.to(device), self.probabilities.to(device), self.temperature)


def wide(values: torch.Tensor) -> torch.Tensor:
    """In float32; float64 as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def forward_kl(
    student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) [N]."""
    log_p, log_q = _log_softmax(teacher_logits_NV, temperature), _log_softmax(student_logits_NV, temperature)
    return temperature**2 * _kl(log_p, log_q)


def reverse_kl(
    student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """KL(student || teacher) [N]."""
    return forward_kl(teacher_logits_NV, student_logits_NV, temperature)


def jsd(
    student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor, beta: float = 0.5, temperature: float = 1.0
) -> torch.Tensor:
    """beta KL(P || M) + (1 - beta) KL(Q || M) [N], M = beta P + (1 - beta) Q of teacher P and student Q.

    Source: arXiv:2306.13649, equation 1. Over beta it goes to KL(P || Q) for beta -> 0; over 1 - beta to KL(Q || P) for
    beta -> 1.
    """
    log_p, log_q = _log_softmax(teacher_logits_NV, temperature), _log_softmax(student_logits_NV, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return temperature**2 * (beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m))


def logits_mse(student_logits_NV: torch.Tensor, teacher_logits_NV: torch.Tensor) -> torch.Tensor:
    """Mean over V of squared differences [N]."""
    return (wide(student_logits_NV) - wide(teacher_logits_NV)).square().mean(-1)


def cross_entropy(student_logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of the labels [N]."""
    return functional.cross_entropy(wide(student_logits_NV), labels_N, reduction="none")


def top_k_of(logits_NV: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    """The k most likely tokens of each row, the likeliest first."""
    found = _log_softmax(logits_NV, temperature).exp().topk(k, -1)
    return TopK(found.indices, found.values, temperature)


def forward_kl_top_k(student_logits_NV: torch.Tensor, top_k: TopK) -> torch.Tensor:
    """KL(teacher || student) [N] with all tokens outside the teacher's top k as one outcome.

    sum_k p_k log(p_k / q_k) + r log(r / (1 - sum_k q_k)), at the temperature that the top k was taken at. Renormalizing
    p instead would inflate what was kept and leave the tail without a gradient. Never above the full KL, and equal to
    it for k = V.
    """
    temperature = top_k.temperature
    logits_NV = wide(student_logits_NV) / temperature
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    p_Nk = top_k.probabilities.to(logits_NV.dtype)
    log_q_Nk = logits_NV.gather(-1, top_k.ids) - total_N1
    kept_N = (torch.xlogy(p_Nk, p_Nk) - p_Nk * log_q_Nk).sum(-1)
    if top_k.ids.shape[-1] == logits_NV.shape[-1]:
        return temperature**2 * kept_N  # nothing is left: what p lacks of 1 is rounding
    # Not log(1 - sum q): where the student is sure, that is a difference of equal numbers.
    others_N = logits_NV.scatter(-1, top_k.ids, -math.inf).logsumexp(-1)
    rest_N = top_k.rest.to(logits_NV.dtype)
    tail_N = torch.xlogy(rest_N, rest_N) - rest_N * (others_N - total_N1.squeeze(-1))
    return temperature**2 * (kept_N + tail_N)


def _log_softmax(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.log_softmax(wide(logits_NV) / temperature, -1)


def _kl(log_p_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
