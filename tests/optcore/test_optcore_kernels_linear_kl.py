"""The fused head and divergence through its kernel: gradients, precision, memory, and what is launched."""

from collections.abc import Iterator

import pytest
import torch
from fixtures.tensor_bytes import TensorBytes
from torch.nn import functional

from optcore.kernels.counting import counting
from optcore.kernels.dispatch import SWITCH
from optcore.kernels.linear_kl import linear_kl
from optcore.training.linear_loss import fused_linear_kl

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "triton")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _given(rows: int, tokens: int, dtype: torch.dtype = torch.float32, near: float = 1.0) -> list[torch.Tensor]:
    """A student and a teacher that differs from it by `near`."""
    random = torch.Generator().manual_seed(tokens)
    hidden, weight, noise = (torch.randn(count, 16, generator=random) for count in (rows, tokens, rows))
    return [one.to(dtype) for one in (hidden, weight, hidden + near * noise, weight)]


def _gradients(given: list[torch.Tensor], chunk_rows: int, temperature: float) -> list[torch.Tensor]:
    leaves = [one.clone().requires_grad_() for one in given[:2]]
    total = fused_linear_kl(*leaves, *given[2:], chunk_rows, temperature)
    return [total.detach(), *torch.autograd.grad(total / len(given[0]), leaves)]


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk_rows", [4, 1024])
@pytest.mark.usefixtures("poisoned")
def test_loss_and_gradients_are_the_definitions(
    chunk_rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _given(11, 301)
    found = _gradients(given, chunk_rows, temperature)
    monkeypatch.setenv(SWITCH, "torch")
    expected = _gradients(given, chunk_rows, temperature)
    assert _apart(found[0], expected[0]) <= 1e-6
    for own, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("near", [1.0, 0.03])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_small_divergences_and_shifted_logits_are_exact_to_float32(near: float, shift: float) -> None:
    """Logits are known but for a constant: one is added to all of the teacher's by a hidden channel more."""
    given = _given(8, 700, near=near)
    wide = [torch.cat([one, torch.zeros(len(one), 1)], 1) for one in given]
    wide[2][:, -1], wide[3][:, -1] = shift, 1
    exact = float(_exact(wide))
    for way in (linear_kl.launch, linear_kl.definition):
        assert abs(float(way(*wide, 1.0, True).total) - exact) <= 4e-7 * (8 + exact)


def _exact(given: list[torch.Tensor]) -> torch.Tensor:
    """Of the very logits that float32 products give: the products' own rounding is not what is compared."""
    student, teacher = (functional.linear(*given[at : at + 2]).double().log_softmax(-1) for at in (0, 2))
    return functional.kl_div(student, teacher, log_target=True, reduction="sum")


def test_rows_that_agree_diverge_by_nothing() -> None:
    given = _given(5, 90, near=0)
    total, gradient_nV = linear_kl(*given, 2.0, True)
    assert total == 0
    assert not gradient_nV.any()


def test_one_kernel_a_chunk_is_given_both_models_logits_and_a_loss_a_row() -> None:
    given = _given(11, 301, torch.bfloat16)
    with counting() as counts:
        _gradients(given, 4, 1.0)
    assert counts.launches == {"kl_rows": 3}
    assert counts.bytes == {"kl_rows": 11 * (2 * 301 * 2 + 4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_than_two_tensors_of_a_chunks_logits_are_made(dtype: torch.dtype) -> None:
    given, chunk = _given(32, 512, dtype), 16
    leaves = [one.clone().requires_grad_() for one in given[:2]]
    logits = chunk * 512 * dtype.itemsize
    kept = leaves[0].nbytes + 4 * leaves[1].numel()  # the gradients
    with TensorBytes() as watched, counting() as counts:
        fused_linear_kl(*leaves, *given[2:], chunk)
    copies = counts.bytes["kl_rows"] // counts.launches["kl_rows"]  # the interpreter's, of what a kernel is given
    assert 2 * logits <= watched.peak - kept <= 2 * logits + copies + 1024


def test_without_gradients_the_student_s_logits_are_not_written() -> None:
    given = _given(3, 40)
    with counting() as counts, torch.no_grad():
        found = fused_linear_kl(*given)
    assert counts.launches == {"kl_rows": 1}
    assert linear_kl.launch(*given, 1.0, False).gradient_nV is None
    assert found == linear_kl.launch(*given, 1.0, True).total


def test_float64_is_left_to_the_definition() -> None:
    given = _given(3, 40, torch.float64)
    assert linear_kl.launch(*given, 1.0, True) is NotImplemented
    assert fused_linear_kl(*given).dtype == torch.float64


@pytest.mark.parametrize("cut", [2, 3])
def test_a_teacher_of_other_rows_or_tokens_is_refused(cut: int) -> None:
    given = _given(9, 9)
    given[cut] = given[cut][:-1]
    with pytest.raises(ValueError, match="rows and tokens of student and teacher differ"):
        fused_linear_kl(*given)
