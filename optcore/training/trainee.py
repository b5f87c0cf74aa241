"""A student and its loss as one module: what processes share out between them, and what a step calls.

Shapes: B windows of T tokens, N rows that count, V vocabulary, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from optcore.errors import RecipeError
from optcore.streaming.decoder import Decoder
from optcore.techniques.losses import AnyLoss, ForwardKl
from optcore.training.divergences import TopK, cross_entropy, forward_kl, forward_kl_top_k
from optcore.training.head import find_head, last_hidden
from optcore.training.hidden_loss import HiddenLoss, Stack
from optcore.training.learner import Learner
from optcore.training.linear_loss import LossOfRows, chunked_linear_loss, fused_linear_kl
from optcore.training.objective import RowLoss, hidden_term
from optcore.training.student import Student
from optcore.training.teacher import LiveTeacher, Rows, Teacher, kept_outputs
from optcore.training.touched import touch_experts
from optcore.training.windows import Batch
from optcore.training_fit import check_same_labels


class Question(NamedTuple):
    """A batch as the student is asked of it, and what the teacher said."""

    inputs: dict[str, torch.Tensor]
    counts_BT: torch.Tensor
    labels_N: torch.Tensor
    said: Rows | None


class Trainee(Learner):
    """Holds the student's modules; the teacher is beside it, not inside, and never trains.

    Raises `RecipeError` for a teacher that numbers labels in another way.
    """

    def __init__(self, student: Student, losses: tuple[AnyLoss, ...], teacher: Teacher | None, seed: int) -> None:
        super().__init__()
        if isinstance(teacher, LiveTeacher):
            check_same_labels(_labels_of(student.decoder), _labels_of(teacher.decoder))
        self.model = student.model
        self.losses = losses
        self._decoder = student.decoder
        self._teacher = teacher
        self._rows = RowLoss(losses)
        self._hidden = self._hidden_loss(seed)
        self._head = find_head(self.model)
        touch_experts(self.model)

    @contextmanager
    def facing(self, teacher: Teacher) -> Iterator[None]:
        """Compared with another teacher."""
        before, self._teacher = self._teacher, teacher
        try:
            yield
        finally:
            self._teacher = before

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of a validation's sums: the same for every batch, also one of which no row counts."""
        return ("tokens", "cross_entropy", "accuracy", *(("kl", "agreement") if self._teacher else ()))

    @property
    def measure(self) -> str:
        """What of a validation is to be low: KL to the teacher where there is one, else the nats of the text."""
        return "kl" if self._teacher else "cross_entropy"

    def counts(self, batch: Batch) -> torch.Tensor:
        """Rows that count, bool [B, T]; of labelled texts [B], all of them."""
        if batch.labels_B is not None:
            return torch.ones_like(batch.labels_B, dtype=torch.bool)
        return batch.predicts_BT if self._decoder.is_causal else batch.learned_BT

    def _loss(self, batch: Batch, windows: list[int], progress: float) -> torch.Tensor:
        inputs, counts_BT, labels_N, said = self._question(batch, windows)
        with kept_outputs(self._decoder.layers if self._hidden else ()) as layers:
            loss = self._row_losses(inputs, counts_BT, labels_N, said)
        if self._hidden is not None and said is not None:
            term, compare = self._hidden
            weights_BT = counts_BT if batch.labels_B is None else _of_one_row(batch.attended_BT)
            loss = loss + term.weight * compare(layers, said.layers_BTH, weights_BT, progress)
        return loss

    def _question(self, batch: Batch, windows: list[int]) -> Question:
        inputs, counts_BT = inputs_of(batch), self.counts(batch)
        said = self._teacher.rows(inputs, counts_BT, windows) if self._teacher else None
        return Question(inputs, counts_BT, self._labels(batch)[counts_BT], said)

    @torch.no_grad()
    def _compared(self, batch: Batch, windows: list[int]) -> dict[str, torch.Tensor]:
        """Sums over the rows that count: nats of the text, of KL(teacher || student), and where both agree."""
        return self._sums(self._question(batch, windows))

    def _sums(self, question: Question) -> dict[str, torch.Tensor]:
        inputs, counts_BT, labels_N, said = question
        sums = {name: counts_BT.new_zeros((), dtype=torch.float64) for name in self.measures}
        sums["tokens"] += counts_BT.sum()

        def note(logits_nV: torch.Tensor, rows: slice) -> torch.Tensor:
            losses_n = cross_entropy(logits_nV, labels_N[rows])
            likeliest_n = logits_nV.argmax(-1)
            sums["cross_entropy"] += losses_n.sum()
            sums["accuracy"] += (likeliest_n == labels_N[rows]).sum()
            if said:
                answer = said.of(rows)
                sums["kl"] += _kl(logits_nV, answer).sum()
                sums["agreement"] += (likeliest_n == _likeliest(answer)).sum()
            return losses_n

        self._over_rows(inputs, counts_BT, note)
        return sums

    def _row_losses(
        self,
        inputs: dict[str, torch.Tensor],
        counts_BT: torch.Tensor,
        labels_N: torch.Tensor,
        said: Rows | None,
    ) -> torch.Tensor:
        head, terms = self._head, self._rows.terms
        if not terms:  # hidden states alone are compared: the head is not needed
            return last_hidden(self.model, **inputs).new_zeros((), dtype=torch.float32)
        if said and head and head.is_plain and said.weight_VH is not None and len(terms) == 1:
            term = terms[0]
            if isinstance(term, ForwardKl) and said.hidden_NH is not None:
                hidden_NH = last_hidden(self.model, **inputs)[counts_BT]
                weight_VH = head.linear.weight
                return term.weight * fused_linear_kl(
                    hidden_NH, weight_VH, said.hidden_NH, said.weight_VH, temperature=term.temperature
                )

        def loss_of_rows(logits_nV: torch.Tensor, rows: slice) -> torch.Tensor:
            return self._rows(logits_nV, said.of(rows) if said else None, labels_N[rows])

        return self._over_rows(inputs, counts_BT, loss_of_rows)

    def _over_rows(
        self, inputs: dict[str, torch.Tensor], counts_BT: torch.Tensor, loss_of_rows: LossOfRows
    ) -> torch.Tensor:
        """A sum over rows of logits, a few at a time where the head allows it."""
        if self._head is None:
            logits_NV = self.model(**inputs, use_cache=False).logits[counts_BT]
            return loss_of_rows(logits_NV.float(), slice(0, len(logits_NV))).sum()
        hidden_NH = last_hidden(self.model, **inputs)[counts_BT]
        linear, transform = self._head
        return chunked_linear_loss(hidden_NH, linear.weight, loss_of_rows, bias_V=linear.bias, transform=transform)

    def _labels(self, batch: Batch) -> torch.Tensor:
        if batch.labels_B is not None:
            return batch.labels_B
        return batch.next_BT if self._decoder.is_causal else batch.tokens_BT

    def _hidden_loss(self, seed: int) -> Any:
        term = hidden_term(self.losses)
        if term is None:
            return None
        if not isinstance(self._teacher, LiveTeacher):
            raise RecipeError(
                "hidden states are compared with a teacher's, and only its likeliest tokens are kept",
                remedy="leave `teacher_top_k` out, or `hidden_mse`",
                field="/chain",
            )
        width = int(self.model.config.get_text_config().hidden_size)
        compare = HiddenLoss(term, Stack(len(self._decoder), width), self._teacher.stack, seed)
        self.add_module("hidden_loss", compare)
        return term, compare


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """What a model is called with: positions that begin anew tell it where documents do, for attention to keep to."""
    if batch.labels_B is not None:
        return {"input_ids": batch.tokens_BT, "attention_mask": batch.attended_BT}
    positions_BT = batch.positions_BT
    is_packed = bool((positions_BT[:, 1:] == 0).any())
    return {"input_ids": batch.tokens_BT} | ({"position_ids": positions_BT} if is_packed else {})


def _labels_of(decoder: Decoder) -> list[str]:
    """A classifier's, by number; none of another model."""
    return [name for _, name in sorted(decoder.model.config.id2label.items())] if decoder.is_classifier else []


def _of_one_row(attended_BT: torch.Tensor) -> torch.Tensor:
    """Weights of a text's tokens that add up to 1: it is one row of the loss, however long it is."""
    return attended_BT / attended_BT.sum(1, keepdim=True)


def _kl(logits_nV: torch.Tensor, answer: torch.Tensor | TopK) -> torch.Tensor:
    if isinstance(answer, TopK):
        return forward_kl_top_k(logits_nV, answer)
    return forward_kl(logits_nV, answer)


def _likeliest(answer: torch.Tensor | TopK) -> torch.Tensor:
    if isinstance(answer, TopK):
        return answer.ids.gather(-1, answer.probabilities.argmax(-1, keepdim=True)).squeeze(-1)
    return answer.argmax(-1)
