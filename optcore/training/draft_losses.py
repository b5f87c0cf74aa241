"""How far a draft's answers are from what its target says, a few rows of logits at a time.

Shapes: N rows, n of a chunk, D tokens of the draft vocabulary, V of the target, H and G hidden sizes of both.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from optcore.drafts.vocabulary import DraftVocabulary
from optcore.training.divergences import forward_kl, wide
from optcore.training.head import Head
from optcore.training.linear_loss import LossOfRows, chunked_linear_loss, fused_linear_kl, head_logits

_DECAY_of_kl = 3.0


class Compared(NamedTuple):
    """Of each row."""

    losses_N: torch.Tensor
    agrees_N: torch.Tensor
    """Whether both find the same token likeliest, bool."""
    acceptance_N: torch.Tensor
    """alpha = sum over v of min(p_v, q_v): how likely a drafted token is accepted at temperature 1."""


class DraftLoss:
    """A target's head and what is made of its logits. The target gets no gradient."""

    def __init__(self, target: Head, vocabulary: DraftVocabulary, kind: Literal["kl", "lk"]) -> None:
        self._vocabulary, self._kind, self._target = vocabulary, kind, target
        weight_VG, bias_V = target.linear.weight.detach(), target.linear.bias
        ids_D = vocabulary.ids_D
        self._weight_DG = weight_VG if vocabulary.is_whole else weight_VG[ids_D]
        self._bias_D = bias_V if bias_V is None or vocabulary.is_whole else bias_V.detach()[ids_D]

    def summed(self, hidden_NH: torch.Tensor, head: Head, said_NG: torch.Tensor) -> torch.Tensor:
        """Over all rows: a float32 scalar. `head` is the draft's, `said_NG` what the target's head makes logits of."""
        if self._kind == "kl" and head.is_plain and self._target.is_plain:
            return fused_linear_kl(hidden_NH, head.linear.weight, said_NG, self._weight_DG)
        return self._over_rows(hidden_NH, head, self._loss_of_rows(said_NG))

    @torch.no_grad()
    def compared(self, hidden_NH: torch.Tensor, head: Head, said_NG: torch.Tensor) -> Compared:
        """Row by row."""
        count, device = len(hidden_NH), hidden_NH.device
        losses_N, acceptance_N = torch.zeros(2, count, device=device)
        agrees_N = torch.zeros(count, dtype=torch.bool, device=device)
        loss_of_rows, said = self._loss_of_rows(said_NG), self._whole(said_NG)

        def note(logits_nD: torch.Tensor, rows: slice) -> torch.Tensor:
            said_nV = wide(said(rows))
            losses_N[rows] = loss_of_rows(logits_nD, rows).float()
            acceptance_N[rows] = self._acceptance(logits_nD, said_nV).float()
            agrees_N[rows] = self._vocabulary.ids_D[logits_nD.argmax(-1)] == said_nV.argmax(-1)
            return losses_N[rows]

        self._over_rows(hidden_NH, head, note)
        return Compared(losses_N, agrees_N, acceptance_N)

    def _loss_of_rows(self, said_NG: torch.Tensor) -> LossOfRows:
        if self._kind == "lk":
            whole = self._whole(said_NG)
            return lambda logits_nD, rows: self._lk(logits_nD, wide(whole(rows)))
        said = head_logits(said_NG, self._weight_DG, self._bias_D, self._target.transform)
        return lambda logits_nD, rows: forward_kl(logits_nD, said(rows))

    def _lk(self, logits_nD: torch.Tensor, said_nV: torch.Tensor) -> torch.Tensor:
        """lambda KL + (1 - lambda) (1 - alpha) with lambda = exp(-3 alpha) without a gradient (arXiv:2602.23881).

        lambda is each row's own, not a mean over a batch: so it does not matter how a batch is cut into parts.
        """
        alpha_n = self._acceptance(logits_nD, said_nV)
        lambda_n = (-_DECAY_of_kl * alpha_n.detach()).exp()
        kl_n = forward_kl(logits_nD, said_nV[:, self._vocabulary.ids_D])
        return lambda_n * kl_n + (1 - lambda_n) * (1 - alpha_n)

    def _acceptance(self, logits_nD: torch.Tensor, said_nV: torch.Tensor) -> torch.Tensor:
        """Of tokens that the draft does not know none is accepted, and the target's mass on them is lost."""
        p_nD = said_nV.softmax(-1)[:, self._vocabulary.ids_D]
        return torch.minimum(p_nD, logits_nD.softmax(-1)).sum(-1)

    def _whole(self, said_NG: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        linear, transform = self._target
        return head_logits(said_NG, linear.weight, linear.bias, transform)

    def _over_rows(self, hidden_NH: torch.Tensor, head: Head, loss_of_rows: LossOfRows) -> torch.Tensor:
        linear, transform = head
        return chunked_linear_loss(hidden_NH, linear.weight, loss_of_rows, bias_V=linear.bias, transform=transform)
