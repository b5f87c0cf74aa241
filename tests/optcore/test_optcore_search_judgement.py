"""Who is out of a race, and what is on its front: rules on numbers that are made up."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optcore.report.numbers import format_bytes
from optcore.search.front import SAME_SPEED, Point, dominates, dominators, goals, shortfall, winner
from optcore.search.judgement import Screened, loses, lower_limit, surely_below, t_quantile
from optcore.search.objective import Objective

HARD_W = (0.1, 0.4, 0.2, 0.8, 0.3, 0.5, 0.2, 0.6)
"""Windows differ far more than candidates do."""
ANY = Objective()


def one(name: str, size: int | None, kl_W: tuple[float, ...] = HARD_W, text: str = "t") -> Screened:
    return Screened(name, size, 1000, kl_W, text)


def worse(by: float, *, noise: float = 0.0) -> tuple[float, ...]:
    draw = random.Random(1)
    return tuple(kl + by + noise * draw.uniform(-1, 1) for kl in HARD_W)


# Abramowitz and Stegun, table 26.10; scipy.stats.t.ppf(0.99, n) gives the same digits.
@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 31.821), (3, 4.541), (4, 3.747), (7, 2.998), (15, 2.602), (63, 2.387)]
)
def test_the_quantile_is_students(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, rel=2e-3)


def test_windows_are_compared_one_by_one() -> None:
    assert surely_below(HARD_W, worse(0.01, noise=0.005))
    assert not surely_below(HARD_W, worse(0.01, noise=0.05))
    assert not surely_below(HARD_W, HARD_W)
    assert not surely_below(worse(0.01), HARD_W)
    assert not surely_below(HARD_W[:1], worse(9)[:1]), "one window says nothing of its spread"
    assert not surely_below(HARD_W, worse(9)[:4]), "others' windows compare with nothing"


def test_a_true_tie_is_seldom_called() -> None:
    draw = random.Random(0)
    called = sum(
        surely_below([draw.gauss(0, 1) for _ in range(8)], [draw.gauss(0, 1) for _ in range(8)]) for _ in range(2000)
    )
    assert 5 <= called <= 40  # one in a hundred of 2000: 20, within four and a half standard deviations


def test_a_loser_is_no_smaller_and_surely_further() -> None:
    good, bad = one("c01", 100), one("c02", 100, worse(0.1))
    assert "c01 is no larger" in loses(bad, [good], ANY)
    assert not loses(good, [bad], ANY)
    assert not loses(one("c02", 90, worse(0.1)), [good], ANY), "it is smaller"
    assert not loses(one("c02", 101, worse(0.1)), [good], ANY), "sizes that files may turn round say nothing"
    assert loses(one("c02", 103, worse(0.1)), [good], ANY)
    assert not loses(one("c02", 100, worse(0.01, noise=0.1)), [good], ANY), "within chance"
    assert not loses(one("c02", None, worse(0.1)), [good], ANY), "its size is not known yet"
    assert not loses(one("c02", 100, worse(0.1), text="other"), [good], ANY), "measured on other text"
    assert not loses(one("c02", 100, ()), [good], ANY)


def test_one_that_misses_a_bound_puts_nobody_out() -> None:
    dense = one("c02", 1050, worse(0.1))._replace(parameters=2000)
    for bits in (8.4, 7.9, 5):
        pruned = one("c01", int(bits * 125))  # of half as many parameters
        assert loses(dense, [pruned], ANY)
        assert not loses(dense, [pruned], Objective(max_bits_per_weight=5)), (
            f"it has {bits} bits a weight, this one 4.2"
        )


SHARES_W = st.lists(st.floats(0, 1), min_size=8, max_size=8)


@given(SHARES_W, SHARES_W, *2 * [st.integers(90, 110)])
def test_none_that_may_meet_the_bounds_is_out_by_one_that_cannot(
    near_W: list[float], more_W: list[float], size_a: int, size_b: int
) -> None:
    a = one("c01", size_a, tuple(near_W))._replace(parameters=900)
    b = one("c02", size_b, tuple(kl + more / 2 for kl, more in zip(near_W, more_W, strict=True)))
    goal = Objective(max_bytes=100, max_bits_per_weight=0.85, max_kl=0.4)
    if loses(a, [], goal) and not loses(b, [], goal):
        assert not loses(b, [a], goal)


def test_where_speed_decides_size_and_quality_put_nobody_out() -> None:
    good, bad = one("c01", 100), one("c02", 200, worse(0.5))
    assert not loses(bad, [good], Objective(min_tokens_per_second=1))
    assert not loses(bad, [good], Objective(minimize="seconds_per_token"))
    assert loses(bad, [good], Objective(min_tokens_per_second=1, max_bytes=150)), "a bound is a bound"


def test_bounds_that_are_surely_missed_put_out() -> None:
    assert loses(one("c01", 103), [], Objective(max_bytes=100))
    assert not loses(one("c01", 101), [], Objective(max_bytes=100)), "its files may be a little smaller"
    assert "bits a weight" in loses(one("c01", 1000), [], Objective(max_bits_per_weight=7))
    assert not loses(one("c01", 1000), [], Objective(max_bits_per_weight=8))
    mean = sum(HARD_W) / len(HARD_W)
    limit = lower_limit(HARD_W)
    assert 0 < limit < mean
    assert not loses(one("c01", 1), [], Objective(max_kl=mean - 1e-3)), "it may still be below"
    assert "99% confidence" in loses(one("c01", 1), [], Objective(max_kl=limit - 1e-3))


POINTS = st.builds(
    Point,
    size=st.integers(1, 5),
    bits=st.just(4.0),
    loss=st.integers(0, 4).map(float),
    speed=st.none() | st.sampled_from([10.0, 10.9, 11.8, 20.0]),
)


def textbook(a: Point, b: Point) -> bool:
    mine, other = ((p.size, p.loss, -(p.speed or 0)) for p in (a, b))
    return all(x <= y for x, y in zip(mine, other, strict=True)) and mine != other


@given(st.lists(POINTS, min_size=1, max_size=12))
def test_the_front_holds_no_dominated_point(found: list[Point]) -> None:
    points = {f"c{number:02d}": point for number, point in enumerate(found)}
    beaten = dominators(points)
    front = [point for name, point in points.items() if name not in beaten]
    assert front, "something is always best"
    assert not [(a, b) for a in front for b in front if dominates(a, b)]
    assert all(by not in beaten and dominates(points[by], points[name]) for name, by in beaten.items())
    assert beaten.keys() == dominators(dict(reversed(points.items()))).keys(), "whatever the order they come in"
    if all(point.speed is not None for point in found):
        assert not [(a, b) for a in front for b in front if textbook(a, b)]
    best = winner(points, ANY)
    assert points[best].loss == min(point.loss for point in found)


@given(POINTS, POINTS)
def test_two_points_never_dominate_each_other(a: Point, b: Point) -> None:
    assert not (dominates(a, b) and dominates(b, a))
    assert not dominates(a, a)


def test_speeds_within_a_measurements_noise_are_one() -> None:
    small, large = Point(10, 4, 0.1, 100 * (1 - SAME_SPEED / 2)), Point(20, 8, 0.2, 100.0)
    assert dominates(small, large)
    assert not dominates(small._replace(speed=100 * (1 - 2 * SAME_SPEED)), large)
    assert not dominates(small._replace(size=20, loss=0.2), large), "alike but for a slower run"


def test_the_fastest_of_a_row_of_like_speeds_stays_on_the_front() -> None:
    row = {"c01": Point(100, 4, 0.1, 10.0), "c02": Point(101, 4, 0.1, 10.9), "c03": Point(102, 4, 0.1, 11.8)}
    assert dominates(row["c01"], row["c02"])
    assert dominates(row["c02"], row["c03"])
    assert dominators(row) == {"c02": "c01"}
    assert winner(row, Objective(minimize="seconds_per_token")) == "c03"


def test_a_speed_that_was_not_measured_is_no_match_for_one_that_was() -> None:
    unknown, known = Point(100, 4, 0.1), Point(100, 4, 0.2, 50.0)
    assert not dominates(unknown, known)
    assert dominates(unknown, known._replace(speed=None))
    assert dominates(known._replace(loss=0.05), unknown)


def test_the_winner_meets_the_bounds_and_is_preferred() -> None:
    points = {"c01": Point(300, 8, 0.01, 10), "c02": Point(200, 5, 0.05, 20), "c03": Point(100, 3, 0.4, 30)}
    assert winner(points, Objective(max_kl=0.1)) == "c02"
    assert winner(points, Objective(max_kl=0.02)) == "c01"
    assert winner(points, Objective(max_bytes=250)) == "c02"
    assert winner(points, Objective(max_bits_per_weight=4)) == "c03"
    assert winner(points, Objective(min_tokens_per_second=15)) == "c02"
    assert winner(points, Objective(minimize="seconds_per_token")) == "c03"
    assert winner(points, Objective(max_kl=0.1, max_bytes=190)) == "c02", "5 % too large is the nearest"


def test_how_near_a_miss_is() -> None:
    goal = Objective(max_bytes=100, max_kl=0.1, min_tokens_per_second=10)
    found = Point(110, 4, 0.2, 8)
    assert [(each.name, each.met) for each in goals(found, goal)] == [
        ("max_bytes", False),
        ("max_kl", False),
        ("min_tokens_per_second", False),
    ]
    assert shortfall(found, goal) == pytest.approx(1.0)
    assert shortfall(Point(100, 4, 0.1, 10), goal) == 0
    assert shortfall(found._replace(speed=None), goal) == math.inf
    assert format_bytes(103) in loses(one("c01", 103), [], goal)
