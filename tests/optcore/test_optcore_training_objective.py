"""Configured terms as one function, over rows of logits and over hidden states."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional

from optcore.errors import RecipeError
from optcore.techniques.losses import Losses, top_k_temperature
from optcore.training import divergences
from optcore.training.divergences import forward_kl, forward_kl_top_k, jsd, reverse_kl, top_k_of
from optcore.training.hidden_loss import HiddenLoss, Pair, Stack, layer_pairs
from optcore.training.linear_loss import chunked_linear_loss, head_logits
from optcore.training.objective import RowLoss, hidden_term

torch.set_num_threads(1)
LOSSES: TypeAdapter[Any] = TypeAdapter(Losses)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


class TestObjective:
    TERMS = LOSSES.validate_python(
        [
            {"kind": "forward_kl", "weight": 0.5, "temperature": 2},
            {"kind": "reverse_kl", "weight": 3, "temperature": 0.5},
            {"kind": "jsd", "beta": 0.2, "temperature": 1.5},
            {"kind": "logits_mse", "weight": 0.1},
            {"kind": "cross_entropy", "weight": 2},
            {"kind": "hidden_mse", "weight": 7},
        ]
    )

    def test_terms_are_weighed_and_added(self) -> None:
        student, teacher, labels = _randn(5, 11), _randn(5, 11, seed=1), torch.tensor([0, 10, 3, 3, 7])
        found = RowLoss(self.TERMS)(student, teacher, labels)
        apart = {
            "forward_kl": forward_kl(student, teacher, 2),
            "reverse_kl": reverse_kl(student, teacher, 0.5),
            "jsd": jsd(student, teacher, 0.2, 1.5),
            "logits_mse": divergences.logits_mse(student, teacher),
            "cross_entropy": divergences.cross_entropy(student, labels),
        }
        weights = dict(zip(apart, (0.5, 3, 1, 0.1, 2), strict=True))
        torch.testing.assert_close(found, sum(weights[kind] * value for kind, value in apart.items()))

    def test_chunks_add_up_to_the_whole(self) -> None:
        (hidden, weight), labels = _leaves(_randn(33, 8), _randn(40, 8, seed=1)), torch.arange(33)
        teacher = head_logits(_randn(33, 12, seed=2), _randn(40, 12, seed=3))
        loss = RowLoss(self.TERMS)
        found = chunked_linear_loss(hidden, weight, lambda some, rows: loss(some, teacher(rows), labels[rows]), 7)
        torch.testing.assert_close(found, loss(hidden @ weight.T, teacher(slice(0, 33)), labels).sum())

    def test_a_top_k_teacher_serves_what_reads_it(self) -> None:
        terms = LOSSES.validate_python([{"kind": "forward_kl", "temperature": 2}, {"kind": "cross_entropy"}])
        (hidden, weight), labels = _leaves(_randn(33, 8), _randn(40, 8, seed=1)), torch.arange(33)
        assert top_k_temperature(terms) == 2
        top = top_k_of(_randn(33, 40, seed=3), 5, top_k_temperature(terms))
        loss = RowLoss(terms)
        found = chunked_linear_loss(hidden, weight, lambda some, rows: loss(some, top.rows(rows), labels[rows]), 7)
        logits = hidden @ weight.T
        expected = forward_kl_top_k(logits, top).sum() + divergences.cross_entropy(logits, labels).sum()
        torch.testing.assert_close(found, expected)
        for kind in ("reverse_kl", "jsd", "logits_mse"):
            with pytest.raises(RecipeError, match=kind):
                RowLoss(LOSSES.validate_python([{"kind": kind}]))(logits, top, labels)

    def test_text_alone_is_enough_for_cross_entropy_only(self) -> None:
        student, labels = _randn(5, 11), torch.tensor([0, 10, 3, 3, 7])
        found = RowLoss(LOSSES.validate_python([{"kind": "cross_entropy"}]))(student, None, labels)
        torch.testing.assert_close(found, functional.cross_entropy(student, labels, reduction="none"))
        with pytest.raises(RecipeError, match="needs a teacher"):
            RowLoss(LOSSES.validate_python([{"kind": "forward_kl"}]))(student, None, labels)


def _hidden(term: dict[str, object], student: Stack, teacher: Stack, seed: int = 0) -> HiddenLoss:
    (found,) = LOSSES.validate_python([{"kind": "hidden_mse", **term}])
    assert hidden_term([found]) is found
    return HiddenLoss(found, student, teacher, seed)


class TestHidden:
    @pytest.mark.parametrize(
        ("student", "teacher", "expected"),
        [(4, 4, [0, 1, 2, 3]), (4, 32, [7, 15, 23, 31]), (3, 5, [1, 3, 4]), (1, 6, [5]), (4, 2, [0, 0, 1, 1])],
    )
    def test_student_layers_are_spread_and_the_last_is_the_last(
        self, student: int, teacher: int, expected: list[int]
    ) -> None:
        (term,) = LOSSES.validate_python([{"kind": "hidden_mse"}])
        assert [pair.teacher for pair in layer_pairs(term, student, teacher)] == expected

    @pytest.mark.parametrize("pair", [(6, 0), (0, 3)])
    def test_a_layer_that_is_not_there_is_refused(self, pair: tuple[int, int]) -> None:
        with pytest.raises(RecipeError, match=rf"layer {pair[0]} of the teacher with layer {pair[1]} of the student"):
            _hidden({"layers": [(5, 2), pair]}, Stack(3, 8), Stack(6, 8))

    def test_value_is_the_relative_error_of_counted_tokens(self) -> None:
        student = [_randn(2, 3, 4, seed=i) for i in range(2)]
        teacher = [_randn(2, 3, 4, seed=9 + i) * 100**i for i in range(4)]
        mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
        student[0][0, 2] = teacher[3][1, 0] = math.nan  # not counted, so never looked at
        found = _hidden({"layers": [(3, 1), (1, 0)]}, Stack(2, 4), Stack(4, 4))(student, teacher, mask)
        expected = 0.0
        for t, s in ((3, 1), (1, 0)):
            for b, i in ((0, 0), (0, 1), (1, 1), (1, 2)):
                own, target = student[s][b, i].double(), teacher[t][b, i].double()
                expected += float(((own - target) ** 2).sum() / (target**2).sum()) / 2
        assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_splitting_a_batch_and_scaling_a_layer_change_nothing(self) -> None:
        student, teacher = [_randn(4, 3, 8)], [_randn(4, 3, 8, seed=1)]
        mask = _randn(4, 3, seed=2) > 0
        loss = _hidden({}, Stack(1, 8), Stack(1, 8))
        parts = sum(loss([student[0][i]], [teacher[0][i]], mask[i]) for i in (slice(0, 1), slice(1, 4)))
        torch.testing.assert_close(loss(student, teacher, mask), parts)
        torch.testing.assert_close(loss([1e3 * student[0]], [1e3 * teacher[0]], mask), parts)
        assert loss(student, teacher, torch.zeros(4, 3)).item() == 0

    def test_widths_that_differ_are_projected_by_a_map_that_learns(self) -> None:
        loss, again = (_hidden({}, Stack(2, 4), Stack(2, 6), seed=5) for _ in range(2))
        other = _hidden({}, Stack(2, 4), Stack(2, 6), seed=6)
        assert [tuple(p.shape) for p in loss.parameters()] == [(6, 4)]
        assert torch.equal(loss.projection_GH, again.projection_GH)
        assert not torch.equal(loss.projection_GH, other.projection_GH)
        assert not list(_hidden({}, Stack(2, 4), Stack(2, 4)).parameters())
        truth = _randn(6, 4, seed=8)
        student = [_randn(4, 5, 4, seed=i, dtype=torch.bfloat16).requires_grad_() for i in range(2)]
        teacher = [states.detach().float() @ truth.T for states in student]
        mask = torch.ones(4, 5)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        first = loss(student, teacher, mask)
        for _ in range(200):
            optimizer.zero_grad()
            loss(student, teacher, mask).backward()
            optimizer.step()
        assert loss(student, teacher, mask) < 1e-3 * first
        torch.testing.assert_close(loss.projection_GH.detach(), truth, rtol=0.1, atol=0.05)
        assert all(states.grad is not None and states.grad.dtype == torch.bfloat16 for states in student)

    def test_the_random_map_keeps_the_mean_square(self) -> None:
        projection = _hidden({}, Stack(1, 256), Stack(1, 512)).projection_GH
        states = _randn(64, 256, seed=3)
        assert (states @ projection.detach().T).square().mean().item() == pytest.approx(1, rel=0.1)

    def test_progress_adds_pairs_from_the_lowest_up(self) -> None:
        loss = _hidden({"progressive": True, "layers": [(5, 2), (1, 0), (3, 1)]}, Stack(3, 4), Stack(6, 4))
        assert loss.pairs == (Pair(1, 0), Pair(3, 1), Pair(5, 2))
        assert [loss.mapped(progress) for progress in (0, 0.24, 0.25, 0.49, 0.5, 0.8, 1)] == [1, 1, 2, 2, 3, 3, 3]
        student = [_randn(1, 2, 4, seed=i).requires_grad_() for i in range(3)]
        teacher = [_randn(1, 2, 4, seed=9 + i) for i in range(6)]
        loss(student, teacher, torch.ones(1, 2), progress=0.3).backward()
        assert [states.grad is not None for states in student] == [True, True, False]
        assert _hidden({}, Stack(3, 4), Stack(6, 4)).mapped(0) == 3
