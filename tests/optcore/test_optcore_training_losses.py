"""Terms of an objective, and divergences against closed forms in float64, torch and merged outcomes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional

from optcore.techniques.losses import Losses, needs_teacher, reads_top_k
from optcore.training import divergences
from optcore.training.divergences import TopK, forward_kl, forward_kl_top_k, jsd, reverse_kl, top_k_of

torch.set_num_threads(1)
LOSSES: TypeAdapter[Any] = TypeAdapter(Losses)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """By the definition, of probabilities."""
    return (p * (p / q).log()).sum(-1)


def _softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    powers = (logits.double() / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


class TestConfigs:
    def test_a_document_becomes_terms(self) -> None:
        terms = LOSSES.validate_json(
            '[{"kind": "forward_kl"}, {"kind": "hidden_mse", "layers": [[3, 1]], "weight": 2}]'
        )
        assert [(term.kind, term.weight) for term in terms] == [("forward_kl", 1), ("hidden_mse", 2)]
        assert terms[1].layers == ((3, 1),)
        assert LOSSES.validate_json(LOSSES.dump_json(terms)) == terms

    @pytest.mark.parametrize(
        ("terms", "said"),
        [
            ([], "at least 1 item"),
            (
                [{"kind": "forward_kl"}, {"kind": "jsd"}, {"kind": "forward_kl", "temperature": 2}],
                "forward_kl is there",
            ),
            ([{"kind": "jsd", "beta": 1}], "less than 1"),
            ([{"kind": "jsd", "beta": 0}], "greater than 0"),
            ([{"kind": "cross_entropy", "weight": 0}], "greater than 0"),
            ([{"kind": "hidden_mse", "layers": [[-1, 0]]}], "greater than or equal to 0"),
            ([{"kind": "hidden_mse", "layers": []}], "at least 1 item"),
            ([{"kind": "kl"}], "does not match any of the expected tags"),
        ],
    )
    def test_impossible_terms_are_refused(self, terms: list[dict[str, object]], said: str) -> None:
        with pytest.raises(ValidationError, match=said):
            LOSSES.validate_python(terms)

    def test_terms_say_what_they_need_of_a_teacher(self) -> None:
        def of(*kinds: str) -> tuple[bool, bool]:
            terms = LOSSES.validate_python([{"kind": kind} for kind in kinds])
            return needs_teacher(terms), reads_top_k(terms)

        assert of("cross_entropy") == (False, True)
        assert of("cross_entropy", "forward_kl") == (True, True)
        assert of("forward_kl", "jsd") == (True, False)
        assert [of(kind)[1] for kind in ("reverse_kl", "logits_mse", "hidden_mse")] == [False] * 3

    def test_every_setting_is_documented(self) -> None:
        definitions = LOSSES.json_schema()["$defs"]
        assert len(definitions) == 6
        for definition in definitions.values():
            assert definition["description"]
            assert all("description" in field for field in definition["properties"].values())


class TestDivergences:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_values_are_those_of_the_definitions(self, temperature: float) -> None:
        student, teacher = 3 * _randn(5, 11), 3 * _randn(5, 11, seed=1)
        q, p = _softmax(student, temperature), _softmax(teacher, temperature)
        square = temperature**2
        expected = {
            forward_kl: square * _kl(p, q),
            reverse_kl: square * _kl(q, p),
        }
        for function, value in expected.items():
            torch.testing.assert_close(function(student, teacher, temperature).double(), value, rtol=1e-5, atol=1e-6)
        m = 0.3 * p + 0.7 * q
        mixed = square * (0.3 * _kl(p, m) + 0.7 * _kl(q, m))
        torch.testing.assert_close(jsd(student, teacher, 0.3, temperature).double(), mixed, rtol=1e-5, atol=1e-6)

    def test_torch_agrees(self) -> None:
        student, teacher, labels = _randn(5, 11), _randn(5, 11, seed=1), torch.tensor([0, 10, 3, 3, 7])
        by_torch = functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
        torch.testing.assert_close(forward_kl(student, teacher), by_torch)
        mse = torch.stack([functional.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)])
        torch.testing.assert_close(divergences.logits_mse(student, teacher), mse)
        nll = -torch.stack([student[row].softmax(-1)[label].log() for row, label in enumerate(labels)])
        torch.testing.assert_close(divergences.cross_entropy(student, labels), nll)

    def test_jsd_over_beta_goes_to_the_kl_of_either_direction(self) -> None:
        student, teacher = _randn(5, 11, dtype=torch.float64), _randn(5, 11, seed=1, dtype=torch.float64)
        near = 1e-5
        close = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(jsd(student, teacher, near) / near, forward_kl(student, teacher), **close)
        torch.testing.assert_close(jsd(student, teacher, 1 - near) / near, reverse_kl(student, teacher), **close)
        assert (forward_kl(student, teacher) - reverse_kl(student, teacher)).abs().max() > 0.05  # told apart above

    @pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd, divergences.logits_mse])
    def test_half_precision_is_widened_first(self, function: Callable[..., torch.Tensor]) -> None:
        student, teacher = (4 * _randn(5, 300, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
        found = function(student, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(student.float(), teacher.float()))
        assert function(student[:0], teacher[:0]).shape == (0,)

    @given(st.integers(0, 10**6), st.floats(0.1, 30), st.floats(0.3, 5))
    @settings(max_examples=25, deadline=None)
    def test_a_divergence_is_zero_for_equals_and_never_negative(self, seed: int, spread: float, tau: float) -> None:
        student, teacher = spread * _randn(3, 9, seed=seed), spread * _randn(3, 9, seed=seed + 1)
        for function in (forward_kl, reverse_kl, lambda s, t, tau: jsd(s, t, 0.2, tau)):
            assert function(student, teacher, tau).min() >= -1e-5
            assert function(student, student + 3, tau).abs().max() < 1e-4


def _merged(logits_NV: torch.Tensor, ids_Nk: torch.Tensor) -> torch.Tensor:
    """Logits [N, k + 1] of the model whose last outcome is `any other token`."""
    others = torch.ones_like(logits_NV, dtype=torch.bool).scatter(-1, ids_Nk, False)
    rest_N = torch.stack([row[kept].logsumexp(-1) for row, kept in zip(logits_NV, others, strict=True)])
    return torch.cat([logits_NV.gather(-1, ids_Nk), rest_N[:, None]], -1)


class TestTopK:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_all_tokens_give_the_full_divergence(self, temperature: float) -> None:
        student, teacher = 3 * _randn(6, 20), 3 * _randn(6, 20, seed=1)
        top = top_k_of(teacher, 20, temperature)
        full = forward_kl(student, teacher, temperature)
        torch.testing.assert_close(forward_kl_top_k(student, top), full, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("k", [1, 4, 19])
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_value_and_gradient_are_those_of_merged_outcomes(self, k: int, temperature: float) -> None:
        teacher = 2 * _randn(6, 20, seed=1, dtype=torch.float64)
        student, naive = (2 * _randn(6, 20, dtype=torch.float64).requires_grad_() for _ in range(2))
        student.retain_grad()
        naive.retain_grad()
        top = top_k_of(teacher, k, temperature)
        found = forward_kl_top_k(student, top)
        p, q = (_merged(logits / temperature, top.ids).softmax(-1) for logits in (teacher, naive))
        expected = temperature**2 * _kl(p, q)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(student.grad, naive.grad)
        assert student.grad.abs().min() > 0  # the tail learns too
        assert torch.autograd.gradcheck(lambda logits: forward_kl_top_k(logits, top), student)

    @given(st.integers(0, 10**6), st.integers(1, 8))
    @settings(max_examples=25, deadline=None)
    def test_merging_outcomes_never_adds_divergence(self, seed: int, k: int) -> None:
        student, teacher = (2 * _randn(4, 9, seed=seed + i, dtype=torch.float64) for i in range(2))
        fewer, more = (forward_kl_top_k(student, top_k_of(teacher, count, 1.0)) for count in (k, k + 1))
        assert (fewer <= more + 1e-12).all()
        assert (more <= forward_kl(student, teacher) + 1e-12).all()
        assert fewer.min() >= -1e-12

    def test_a_teacher_without_a_rest_gives_the_tail_no_gradient_of_its_own(self) -> None:
        top = TopK(torch.tensor([[2, 0]]), torch.tensor([[1.0, 0.0]]))
        student = _randn(1, 6).requires_grad_()
        loss = forward_kl_top_k(student, top)
        torch.testing.assert_close(loss, functional.cross_entropy(student, torch.tensor([2]), reduction="none"))
        loss.sum().backward()
        expected = student.detach().softmax(-1) - functional.one_hot(torch.tensor([2]), 6)
        torch.testing.assert_close(student.grad, expected)

    @pytest.mark.parametrize("height", [30.0, 200.0, 1e4])
    def test_a_student_that_is_sure_gets_finite_numbers(self, height: float) -> None:
        """1 - sum q is 0 in float32 from a height of 17 on; its logarithm is about minus the height."""
        top = TopK(torch.tensor([[0]]), torch.tensor([[0.75]]))
        student = torch.tensor([[height, 0.0, 0.0]], requires_grad=True)
        loss = forward_kl_top_k(student, top)
        expected = 0.75 * math.log(0.75) + 0.25 * (math.log(0.25) + height - math.log(2))
        torch.testing.assert_close(loss, torch.tensor([expected]))
        loss.sum().backward()
        torch.testing.assert_close(student.grad, torch.tensor([[0.25, -0.125, -0.125]]))

    def test_rounded_probabilities_may_add_up_to_more_than_one(self) -> None:
        top = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.301]], dtype=torch.float16))
        assert top.probabilities.float().sum() > 1
        assert top.rest.item() == 0
        assert forward_kl_top_k(_randn(1, 5), top).isfinite().all()

    def test_the_likeliest_come_first_and_rows_can_be_chosen(self) -> None:
        logits = 3 * _randn(6, 20)
        top = top_k_of(logits, 4, 2.0)
        p = _softmax(logits, 2.0).sort(-1, descending=True)
        assert torch.equal(top.ids, p.indices[:, :4])
        torch.testing.assert_close(top.probabilities.double(), p.values[:, :4], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(top.rest.double(), p.values[:, 4:].sum(-1), rtol=1e-4, atol=1e-6)
        mask = torch.tensor([True, False, False, True, False, False])
        assert torch.equal(top.rows(mask).ids, top.ids[[0, 3]])
        assert torch.equal(top.rows(slice(1, 3)).probabilities, top.probabilities[1:3])
