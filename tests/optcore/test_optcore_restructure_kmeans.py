"""One-dimensional k-means against brute force over all partitions, and what it is used through."""

from itertools import combinations

import pytest
import torch

from optcore.algorithms import kmeans as module
from optcore.algorithms.kmeans import Points, assigned, kmeans, lloyd, points, squared_error, uniform_levels
from optcore.algorithms.packing import pack_stream


def brute_force(found: Points, levels: int) -> float:
    """The least weighted squared error of all cuts of the sorted values into intervals."""
    values, weights = found.values_U.tolist(), found.weights_U.tolist()
    best = float("inf")
    for cuts in combinations(range(1, len(values)), levels - 1):
        total = 0.0
        for begin, end in zip((0, *cuts), (*cuts, len(values)), strict=True):
            mass = sum(weights[begin:end])
            mean = sum(w * v for w, v in zip(weights[begin:end], values[begin:end], strict=True)) / mass
            total += sum(w * (v - mean) ** 2 for w, v in zip(weights[begin:end], values[begin:end], strict=True))
        best = min(best, total)
    return best


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_few_values_get_the_optimum(levels: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values, weights = torch.randn(14, generator=random) ** 3, torch.rand(14, generator=random) + 0.01
    found = points(values, weights)
    assert squared_error(found, kmeans(found, levels)) == pytest.approx(brute_force(found, levels), rel=1e-9)


def test_many_normal_values_get_the_lloyd_max_distortion() -> None:
    """Max, "Quantizing for minimum distortion" (1960), table I: the least mean squared errors of a unit normal."""
    found = points(torch.randn(400_000, generator=torch.Generator().manual_seed(0)).bfloat16().float())
    for levels, expected in ((2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497), (32, 0.002499)):
        error = squared_error(found, kmeans(found, levels)) / 400_000
        assert error == pytest.approx(expected, rel=0.02), levels


def test_no_step_of_lloyds_makes_it_worse_and_it_ends_where_levels_are_means() -> None:
    random = torch.Generator().manual_seed(1)
    found = points(torch.randn(3000, generator=random), torch.rand(3000, generator=random) + 0.1)
    start = uniform_levels(found, 8)
    errors = [squared_error(found, lloyd(found, start, steps)) for steps in range(12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    end = lloyd(found, start)
    nearest = assigned(found, end)[torch.argsort(found.places_E)]  # every value here is there once
    for level in range(8):
        chosen = nearest == level
        mean = (found.values_U * found.weights_U)[chosen].sum() / found.weights_U[chosen].sum()
        assert float(end[level]) == pytest.approx(float(mean), abs=1e-12)


@pytest.mark.parametrize("far", [10.0, 1e3, 1e5])
def test_more_levels_are_better_however_far_some_values_lie(far: float) -> None:
    values_E = torch.randn(5000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    found = points(torch.cat([values_E, torch.tensor([-far, far])]))
    levels = [kmeans(found, count) for count in (16, 32, 64, 256)]
    errors = [squared_error(found, levels_L) for levels_L in levels]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert errors[3] < 0.3 * errors[2]
    assert len(levels[3].unique()) == 256


def test_weights_move_the_levels() -> None:
    values = torch.tensor([0.0, 1.0, 10.0, 11.0])
    found = points(values, torch.tensor([3.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(kmeans(found, 2), torch.tensor([0.25, 10.5], dtype=torch.float64))


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_as_many_values_as_levels_come_back(levels: int) -> None:
    values = torch.linspace(-3, 5, levels).repeat(3)
    found = points(values, torch.rand(len(values)) + 0.1)
    table = kmeans(found, levels)
    assert torch.equal(table[assigned(found, table).long()], values.double())
    few = points(values[:1])
    assert kmeans(few, levels).tolist() == [float(values[0])] * levels


def test_the_start_by_bins_is_near_the_exact_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(2)
    found = points(torch.randn(250, generator=random) ** 3, torch.rand(250, generator=random) + 0.01)
    exact = squared_error(found, kmeans(found, 8))
    monkeypatch.setattr(module, "_BINS", 40)
    assert exact <= squared_error(found, kmeans(found, 8)) <= 1.05 * exact


def test_codes_of_three_bits_fill_bytes_from_the_lowest_bit_up() -> None:
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0, 5], dtype=torch.uint8)
    # 0b001, 0b010, ...: bytes 11_010_001, 0_101_100_0, 000_111_11 and then 5 alone, without padding to eight codes
    assert pack_stream(codes, 3).tolist() == [0b11_010_001, 0b0_101_100_0, 0b000_111_11, 0b101]
    assert pack_stream(codes[:1], 3).tolist() == [1]
    assert pack_stream(codes, 8).tolist() == codes.tolist()
