"""The configured terms as one function over rows of logits.

Terms on hidden states look at other tensors than rows of logits; they are in `hidden_loss.py`.
"""

from collections.abc import Iterable
from typing import TypeAlias, assert_never

import torch

from optcore.errors import RecipeError
from optcore.techniques.losses import CrossEntropy, ForwardKl, HiddenMse, Jsd, LogitsMse, Loss, ReverseKl
from optcore.training import divergences
from optcore.training.divergences import TopK

RowTerm = ForwardKl | ReverseKl | Jsd | LogitsMse | CrossEntropy
Teacher: TypeAlias = torch.Tensor | TopK | None
"""The teacher's side of some rows: logits [n, V], its top k, or nothing where no term compares with one."""


class RowLoss:
    """The weighted sum of the terms that are functions of logits; others are passed over.

    Where `terms` is empty afterwards there is nothing to call it for.
    """

    def __init__(self, terms: Iterable[Loss]) -> None:
        self.terms: tuple[RowTerm, ...] = tuple(term for term in terms if isinstance(term, RowTerm))

    def __call__(self, student_logits_NV: torch.Tensor, teacher: Teacher, labels_N: torch.Tensor) -> torch.Tensor:
        """All terms times their weights, added [N]. Raises `RecipeError` where the teacher's side is not enough."""
        losses_N = torch.zeros(len(labels_N), dtype=torch.float32, device=student_logits_NV.device)
        for term in self.terms:
            losses_N = losses_N + term.weight * _loss(term, student_logits_NV, teacher, labels_N)
        return losses_N


def hidden_term(terms: Iterable[Loss]) -> HiddenMse | None:
    """The term on hidden states, if there is one."""
    return next((term for term in terms if isinstance(term, HiddenMse)), None)


def _loss(term: RowTerm, student_logits_NV: torch.Tensor, teacher: Teacher, labels_N: torch.Tensor) -> torch.Tensor:
    if isinstance(term, CrossEntropy):
        return divergences.cross_entropy(student_logits_NV, labels_N)
    if isinstance(teacher, TopK):
        if isinstance(term, ForwardKl):
            return divergences.forward_kl_top_k(student_logits_NV, teacher)
        raise _refused(term, "all of the teacher's logits, and its top k was kept", "use forward_kl, or no cache")
    if teacher is None:
        raise _refused(term, "a teacher, and there is none", "name a teacher, or use cross_entropy")
    return _dense(term, student_logits_NV, teacher)


def _dense(
    term: ForwardKl | ReverseKl | Jsd | LogitsMse, student_NV: torch.Tensor, teacher_NV: torch.Tensor
) -> torch.Tensor:
    match term:
        case ForwardKl():
            return divergences.forward_kl(student_NV, teacher_NV, term.temperature)
        case ReverseKl():
            return divergences.reverse_kl(student_NV, teacher_NV, term.temperature)
        case Jsd():
            return divergences.jsd(student_NV, teacher_NV, term.beta, term.temperature)
        case LogitsMse():
            return divergences.logits_mse(student_NV, teacher_NV)
        case _:
            assert_never(term)


def _refused(term: RowTerm, needed: str, remedy: str) -> RecipeError:
    return RecipeError(f"the loss {term.kind} needs {needed}", remedy=remedy)
