"""Formulas that merge tensors, against closed forms, the papers read as loops, and mergekit where it is installed."""

import math

import pytest
import torch

from optcore.algorithms.merging import agreed, dropped, linear, slerp, summed, trimmed


def _tensors(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_linear_is_the_weighted_mean() -> None:
    a, b = _tensors(2, 5, 7)
    expected = (2 * a.double() + 0.5 * b.double()) / 2.5
    torch.testing.assert_close(linear([a, b], [2, 0.5], normalize=True).double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(linear([a, b], [2, 0.5], normalize=False).double(), 2.5 * expected, rtol=1e-6, atol=1e-6)
    assert linear([a, b], [1, 0], normalize=True).equal(a)
    assert linear([a, b], [0, 1], normalize=True).equal(b)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
def test_slerp_of_orthogonal_tensors_is_a_quarter_circle(t: float) -> None:
    a, b = torch.zeros(2, 2), torch.zeros(2, 2)
    a[0, 1], b[1, 0] = 1, 1
    got = slerp(a, b, t)
    assert got[0, 1].item() == pytest.approx(math.cos(t * math.pi / 2), abs=1e-6)
    assert got[1, 0].item() == pytest.approx(math.sin(t * math.pi / 2), abs=1e-6)


def test_slerp_walks_the_angle_evenly_in_float64() -> None:
    a, b = (each.double() / each.double().norm() for each in _tensors(2, 6, 4))
    whole = math.acos(float((a * b).sum()))
    for t in (0.1, 0.5, 0.9):
        point = slerp(a, b, t)
        assert float(point.norm()) == pytest.approx(1, abs=1e-12)
        assert math.acos(float((a * point).sum())) == pytest.approx(t * whole, abs=1e-9)


def test_slerp_ends_are_exact_and_parallel_tensors_go_straight() -> None:
    a, b = _tensors(2, 9)
    assert slerp(a, b, 0).equal(a)
    assert slerp(a, b, 1).equal(b)
    assert slerp(a, 3 * a, 0.25).equal(0.75 * a + 0.25 * (3 * a))
    assert slerp(a, -a, 0.5).abs().max() == 0
    assert slerp(a, torch.zeros_like(a), 0.25).equal(0.75 * a)


def _loop(deltas: list[list[float]], weights: list[float], density: float) -> list[float]:
    """TIES as section 3 of its paper says: trim, elect, and the mean of those that agree."""
    count = round(density * len(deltas[0]))
    kept = []
    for delta in deltas:
        order = sorted(range(len(delta)), key=lambda i, delta=delta: -abs(delta[i]))[:count]  # type: ignore[misc]
        kept.append([value if i in order else 0.0 for i, value in enumerate(delta)])
    merged = []
    for i in range(len(deltas[0])):
        total = sum(weight * delta[i] for weight, delta in zip(weights, kept, strict=True))
        same = [(w, d[i]) for w, d in zip(weights, kept, strict=True) if d[i] * total * w > 0]
        merged.append(sum(w * value for w, value in same) / sum(w for w, _ in same) if same else 0.0)
    return merged


@pytest.mark.parametrize("density", [0.1, 0.29, 0.5, 1.0])
def test_ties_is_what_the_paper_says(density: float) -> None:
    deltas, weights = _tensors(3, 100), [1.0, 0.7, 1.4]
    got = agreed([trimmed(delta, density) for delta in deltas], weights, normalize=True)
    expected = _loop([delta.double().tolist() for delta in deltas], weights, density)
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert torch.tensor(expected).count_nonzero() >= density * 100


def test_trimming_keeps_the_exact_share_even_of_equal_ones() -> None:
    delta = torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, 0.0]])
    assert trimmed(delta, 0.5).tolist() == [[1, -1, 0], [2, 0, 0]]
    assert trimmed(delta, 0.01).tolist() == [[0, 0, 0], [2, 0, 0]]
    assert trimmed(delta, 1).equal(delta)


def test_a_sign_that_nobody_wins_is_positive_and_nothing_stays_nothing() -> None:
    deltas = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-1.0, 2.0, 0.0])]
    assert agreed(deltas, [1, 1], normalize=True).tolist() == [1, 1.5, 0]
    assert agreed(deltas, [1, 1], normalize=False).tolist() == [1, 3, 0]


def test_weights_that_cancel_but_for_their_rounding_do_not_blow_up() -> None:
    deltas = [torch.tensor([value]) for value in (1.0, 1.0, -1.0, -0.1)]
    assert abs(agreed(deltas, [0.1, 0.6, -0.7, 1.0], normalize=True).item()) < 2


def test_dropping_keeps_a_share_and_the_mean() -> None:
    delta = torch.ones(200, 500)
    got = dropped(delta, 0.2, seed=5)
    assert set(got.unique().tolist()) == {0.0, 5.0}
    deviations = (got.count_nonzero().item() / delta.numel() - 0.2) / math.sqrt(0.2 * 0.8 / delta.numel())
    print(f"share kept is {deviations:+.2f} standard deviations from 0.2")
    assert abs(deviations) < 4
    assert got.equal(dropped(delta, 0.2, seed=5))
    assert not got.equal(dropped(delta, 0.2, seed=6))
    assert dropped(delta, 1, seed=5).equal(delta)


def test_mergekit_says_the_same() -> None:
    reason = "mergekit is not installed: it is an oracle of this test, no dependency"
    theirs = pytest.importorskip("mergekit.merge_methods.slerp", reason=reason)
    sparsify = pytest.importorskip("mergekit.sparsify", reason=reason)
    generalized = pytest.importorskip("mergekit.merge_methods.generalized_task_arithmetic", reason=reason)
    a, b, c = _tensors(3, 8, 10)
    for t in (0.0, 0.3, 1.0):
        torch.testing.assert_close(slerp(a, b, t), theirs.slerp(torch.tensor([t]), a[None], b[None])[0])
    kept = [trimmed(each, 0.5) for each in (a, b, c)]
    assert all(mine.equal(sparsify.magnitude(each, 0.5)) for mine, each in zip(kept, (a, b, c), strict=True))
    weights = torch.tensor([1.0, 0.5, 2.0])[:, None, None]
    deltas = weights * torch.stack(kept)
    mask = generalized.get_mask(deltas, method="sum")
    divisor = (weights * mask).sum(0)
    expected = (deltas * mask).sum(0) / torch.where(divisor == 0, 1, divisor)
    torch.testing.assert_close(agreed(kept, [1.0, 0.5, 2.0], normalize=True), expected)
    torch.testing.assert_close(summed(kept, [1.0, 0.5, 2.0], normalize=False), deltas.sum(0))
