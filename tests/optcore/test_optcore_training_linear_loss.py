"""Fused head and loss against autograd of the naive computation, and its memory."""

import pytest
import torch
from fixtures.tensor_bytes import TensorBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from optcore.training import divergences
from optcore.training.divergences import forward_kl, jsd, reverse_kl
from optcore.training.linear_loss import CHUNK_rows, chunked_linear_loss, fused_linear_kl, head_logits, rows_at_once

torch.set_num_threads(1)
CHUNKS = [1, 7, 1024]


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def _assert_same_gradients(ours: list[torch.Tensor], naive: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for own, other in zip(ours, naive, strict=True):
        assert own.grad is not None
        assert own.grad.dtype == own.dtype
        torch.testing.assert_close(own.grad, other.grad, rtol=tolerance, atol=tolerance)


class TestChunked:
    @pytest.mark.parametrize("chunk_rows", CHUNKS)
    @pytest.mark.parametrize("has_bias", [False, True])
    @pytest.mark.parametrize("cap", [None, 2.0])
    def test_loss_and_gradients_are_the_naive_ones(self, chunk_rows: int, has_bias: bool, cap: float | None) -> None:
        given = [_randn(33, 8), _randn(40, 8, seed=1), _randn(40, seed=2)][: 3 if has_bias else 2]
        ours, naive = _leaves(*given), _leaves(*given)
        teacher, labels = _randn(33, 40, seed=3), torch.arange(33)
        transform = None if cap is None else lambda logits: cap * torch.tanh(logits / cap)

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            return reverse_kl(logits, teacher[rows]) + divergences.cross_entropy(logits, labels[rows])

        bias = ours[2] if has_bias else None
        found = chunked_linear_loss(ours[0], ours[1], of_rows, chunk_rows, bias, transform)
        logits = functional.linear(*naive)
        expected = of_rows(transform(logits) if transform else logits, slice(0, 33)).sum()
        torch.testing.assert_close(found, expected)
        (found / 33).backward()
        (expected / 33).backward()
        _assert_same_gradients(ours, naive)

    def test_gradients_stand_numerical_differences(self) -> None:
        teacher = _randn(5, 6, seed=3, dtype=torch.float64)
        inputs = _leaves(
            *(_randn(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate([(5, 3), (6, 3), (6,)]))
        )

        def loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
                return jsd(logits, teacher[rows], 0.3, 2.0)

            return chunked_linear_loss(hidden, weight, of_rows, 2, bias, torch.tanh)

        assert torch.autograd.gradcheck(loss, inputs)

    @pytest.mark.parametrize("chunk_rows", CHUNKS)
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_the_closed_form_is_the_naive_one(self, chunk_rows: int, temperature: float) -> None:
        given = _randn(33, 8), _randn(40, 8, seed=1)
        teacher = _randn(33, 12, seed=2), _randn(40, 12, seed=3)
        ours, naive = _leaves(*given), _leaves(*given)
        found = fused_linear_kl(*ours, *teacher, chunk_rows, temperature)
        p, q = (functional.linear(*pair).div(temperature).log_softmax(-1) for pair in (teacher, naive))
        expected = temperature**2 * functional.kl_div(q, p, log_target=True, reduction="sum")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        (found / 33).backward()
        (expected / 33).backward()
        _assert_same_gradients(ours, naive)

    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_the_closed_form_stands_numerical_differences(self, temperature: float) -> None:
        shapes = (5, 3), (6, 3), (5, 4), (6, 4)
        made = [_randn(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]
        inputs = _leaves(*made[:2])
        assert torch.autograd.gradcheck(lambda h, w: fused_linear_kl(h, w, made[2], made[3], 2, temperature), inputs)

    @pytest.mark.parametrize("frozen", [0, 1])
    def test_what_needs_no_gradient_gets_none(self, frozen: int) -> None:
        given, teacher = (_randn(9, 4), _randn(7, 4, seed=1)), (_randn(9, 3, seed=2), _randn(7, 3, seed=3))
        every, some = _leaves(*given), _leaves(*given)
        some[frozen].requires_grad_(False)
        fused_linear_kl(*every, *teacher, 4).backward()
        fused_linear_kl(*some, *teacher, 4).backward()
        assert some[frozen].grad is None
        assert torch.equal(some[1 - frozen].grad, every[1 - frozen].grad)

    def test_a_validation_pass_takes_no_gradients(self) -> None:
        hidden, weight, teacher = *_leaves(_randn(9, 4), _randn(7, 4, seed=1)), _randn(9, 7, seed=2)
        asked = []

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            asked.append(logits.requires_grad)
            return forward_kl(logits, teacher[rows])

        with torch.no_grad():
            found = chunked_linear_loss(hidden, weight, of_rows, 4)
        trained = chunked_linear_loss(hidden, weight, of_rows, 4)
        assert asked == [False] * 3 + [True] * 3
        assert not found.requires_grad
        assert torch.equal(found, trained)

    def test_no_rows_are_no_loss(self) -> None:
        hidden, weight = _leaves(_randn(0, 4), _randn(7, 4))
        found = fused_linear_kl(hidden, weight, _randn(0, 3), _randn(7, 3))
        found.backward()
        assert found.item() == 0
        assert hidden.grad.shape == (0, 4)
        assert not weight.grad.any()

    def test_a_chunk_has_rows(self) -> None:
        with pytest.raises(ValueError, match="at least one row"):
            fused_linear_kl(_randn(2, 4), _randn(7, 4), _randn(2, 3), _randn(7, 3), chunk_rows=-1)

    def test_accumulated_batches_are_one_batch(self) -> None:
        given, teacher = (_randn(30, 4), _randn(7, 4, seed=1)), (_randn(30, 3, seed=2), _randn(7, 3, seed=3))
        whole, parts = _leaves(*given), _leaves(*given)
        (fused_linear_kl(*whole, *teacher, 8) / 30).backward()
        for rows in (slice(0, 11), slice(11, 12), slice(12, 30)):
            (fused_linear_kl(parts[0][rows], parts[1], teacher[0][rows], teacher[1], 8) / 30).backward()
        _assert_same_gradients(parts, whole, 1e-6)

    def test_a_graph_that_is_kept_gives_the_same_twice(self) -> None:
        hidden, weight = _leaves(_randn(9, 4), _randn(7, 4, seed=1))
        loss = fused_linear_kl(hidden, weight, _randn(9, 3, seed=2), _randn(7, 3, seed=3), 4)
        once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        again = torch.autograd.grad(3 * loss, (hidden, weight))
        for first, second in zip(once, again, strict=True):
            torch.testing.assert_close(3 * first, second)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_products_are_in_bfloat16_and_the_loss_in_float32(self, autocast: bool) -> None:
        stored = torch.float32 if autocast else torch.bfloat16
        given = [_randn(33, 8, dtype=stored), _randn(40, 8, seed=1, dtype=stored)]
        ours, naive, exact = _leaves(*given), _leaves(*given), _leaves(*(one.double() for one in given))
        teacher, seen = _randn(33, 40, seed=2), []

        def of_rows(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            seen.append(logits.dtype)
            assert not torch.is_autocast_enabled("cpu")
            return forward_kl(logits, teacher[rows])

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = chunked_linear_loss(*ours, of_rows, 7)
            expected = forward_kl(functional.linear(*naive), teacher).sum()
        assert set(seen) == {torch.float32}
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        found.backward()
        expected.backward()
        _assert_same_gradients(ours, naive, 0.03)
        forward_kl(functional.linear(*exact), teacher).sum().backward()
        for own, other, best in zip(ours, naive, exact, strict=True):
            errors = [float((one.grad.double() - best.grad).norm() / best.grad.norm()) for one in (own, other)]
            assert errors[0] < 1.2 * errors[1] < 0.02

    def test_both_ways_agree_under_autocast(self) -> None:
        given, teacher = (_randn(33, 8), _randn(40, 8, seed=1)), (_randn(33, 12, seed=2), _randn(40, 12, seed=3))
        closed, generic = _leaves(*given), _leaves(*given)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head_logits(*teacher)
            assert logits(slice(0, 4)).dtype == torch.bfloat16
            fused_linear_kl(*closed, *teacher, 7, 2.0).backward()
            chunked_linear_loss(*generic, lambda own, rows: forward_kl(own, logits(rows), 2.0), 7).backward()
        _assert_same_gradients(closed, generic, 1e-2)

    def test_a_weight_is_summed_in_float32(self) -> None:
        """4096 equal rows of one chunk each: in bfloat16 the sum would stop at 256 times the first."""
        hidden, weight = torch.ones(4096, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
        weight.requires_grad_()
        labels = torch.zeros(4096, dtype=torch.int64)
        loss = chunked_linear_loss(hidden, weight, lambda own, rows: divergences.cross_entropy(own, labels[rows]), 1)
        loss.backward()
        assert weight.grad.flatten().tolist() == [-2048, 2048]


@pytest.mark.parametrize("tokens", [7, 32_000, 50_257, 128_256, 151_936, 262_144])
def test_a_gpu_s_chunks_are_as_large_as_a_gib_of_logits_allows(tokens: int) -> None:
    with FakeTensorMode():
        head = torch.empty(tokens, 8, dtype=torch.bfloat16, device="cuda")
        rows = rows_at_once(head)
        assert rows_at_once(head.cpu()) == CHUNK_rows
    assert rows % 256 == 0
    assert 4 * rows * tokens <= 2**30 < 4 * (rows + 256) * tokens


def _peak_bytes(way: str, rows: int, vocabulary: int) -> int:
    """Of forward or backward, beyond inputs and the gradients that are kept and, in the latter, also returned."""
    width, chunk = 4, 16
    student = _leaves(_randn(rows, width), _randn(vocabulary, width, seed=1))
    teacher = _randn(rows, width, seed=2), _randn(vocabulary, width, seed=3)
    gradients = sum(one.nbytes for one in student)
    with TensorBytes() as watched:
        if way == "naive":
            loss = forward_kl(functional.linear(*student), functional.linear(*teacher)).sum()
        elif way == "chunked":
            logits = head_logits(*teacher)
            loss = chunked_linear_loss(*student, lambda own, part: forward_kl(own, logits(part)), chunk)
        else:
            loss = fused_linear_kl(*student, *teacher, chunk)
        forward, watched.peak = watched.peak, watched.alive
        loss.backward()
    kept = 0 if way == "naive" else gradients
    return max(forward - kept, watched.peak - kept - gradients)


def test_peak_memory_of_chunks_does_not_follow_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(128, 512), (1024, 512), (128, 4096), (1024, 4096)]
    ways = ("naive", "chunked", "fused")
    naive, chunked, fused = ({size: _peak_bytes(way, *size) for size in sizes} for way in ways)
    with capsys.disabled():
        print("\nPeak MB beyond inputs and gradients, 16 rows a chunk\nrows  vocabulary  naive  chunked  fused")
        for size in sizes:
            found = naive[size] / 1e6, chunked[size] / 1e6, fused[size] / 1e6
            print(f"{size[0]:4}  {size[1]:10}  {found[0]:5.1f}  {found[1]:7.3f}  {found[2]:5.3f}")
    for vocabulary in (512, 4096):
        few, many, logits = (128, vocabulary), (1024, vocabulary), 16 * vocabulary * 4
        assert naive[many] > 7 * naive[few]
        assert chunked[many] == chunked[few]
        assert fused[many] == fused[few]
        assert 3 * logits <= fused[many] <= 3 * logits + 1024
