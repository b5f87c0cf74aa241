"""The allocation of options to groups is the optimum, and fast at the size of a real model."""

import random
import time
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optcore.algorithms.allocation import Option, allocate
from optcore.errors import RecipeError

OPTIONS = st.builds(Option, st.integers(0, 40), st.floats(0, 10) | st.sampled_from([0.0, 1.0, 2.0]))
GROUPS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def total(groups: list[list[Option]], choices: list[int]) -> Option:
    chosen = [options[choice] for options, choice in zip(groups, choices, strict=True)]
    return Option(sum(o.cost for o in chosen), sum(o.score for o in chosen))


def brute_force(groups: list[list[Option]], budget: int) -> float | None:
    """The least score within the budget; None where nothing fits."""
    sums = (total(groups, list(c)) for c in product(*(range(len(options)) for options in groups)))
    return min((s.score for s in sums if s.cost <= budget), default=None)


@settings(max_examples=300, deadline=None)
@given(groups=GROUPS, budget=st.integers(0, 200))
def test_equals_brute_force(groups: list[list[Option]], budget: int) -> None:
    expected = brute_force(groups, budget)
    if expected is None:
        with pytest.raises(RecipeError):
            allocate(groups, budget)
        return
    found = total(groups, allocate(groups, budget))
    assert found.cost <= budget
    assert found.score == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS)
def test_a_larger_budget_is_never_worse(groups: list[list[Option]]) -> None:
    least = sum(min(o.cost for o in options) for options in groups)
    scores = [total(groups, allocate(groups, budget)).score for budget in range(least, least + 100, 7)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(scores))


def test_costs_in_a_common_unit_give_the_same_choice() -> None:
    groups = [[Option(3, 5.0), Option(5, 2.0), Option(8, 0.0)], [Option(2, 9.0), Option(6, 1.0)]]
    huge = [[Option(o.cost * 2**40, o.score) for o in options] for options in groups]
    assert [allocate(huge, budget * 2**40) for budget in range(5, 15)] == [allocate(groups, b) for b in range(5, 15)]


def test_an_impossible_budget_says_the_least_possible() -> None:
    with pytest.raises(RecipeError, match="cheapest options cost 7"):
        allocate([[Option(3, 0.0)], [Option(4, 0.0), Option(9, 0.0)]], 6)


def random_model(seed: int, kind: str) -> list[list[Option]]:
    """400 groups with 6 formats each, whose errors fall by about 4 a bit; sizes and sensitivities vary widely."""
    rng = random.Random(seed)
    groups = []
    for _ in range(400):
        weights = rng.choice([1, 3, 4, 11]) * 2**20 if kind == "layers" else rng.randrange(10**5, 10**7)
        sensitivity = 1e-9 * weights if kind == "flat" else 10 ** rng.uniform(-4, 0)
        bits = [4.25, 4.5, 5.0, 6.0, 8.03125, 16.0]
        groups.append([Option(int(weights * b), sensitivity * rng.uniform(0.8, 1.2) * 4.0**-b) for b in bits])
    return groups


@pytest.mark.parametrize("kind", ["layers", "any size", "flat"])
def test_a_large_model_takes_seconds(kind: str) -> None:
    slowest = 0.0
    for seed, average in enumerate((4.4, 4.8, 5.5, 7.0)):
        groups = random_model(seed, kind)
        budget = int(sum(options[-1].cost for options in groups) / 16 * average)
        start = time.perf_counter()
        found = total(groups, allocate(groups, budget))
        slowest = max(slowest, time.perf_counter() - start)
        assert found.cost <= budget
    print(f"{kind}: 400 groups x 6 options in at most {slowest:.2f} s")
    assert slowest < 5
