"""The test behind a threshold, against exact sums and simulated text; and what drafts are worth."""

import math
import random
from fractions import Fraction

import pytest

from optcore.restructure.risk_control import binomial_tail, hoeffding_bentkus, last_safe, least_losses
from optcore.restructure.speculation import best_draft, tokens_a_pass


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 60), (40, 1000), (60, 60)])
def test_the_binomial_tail_is_exact(successes: int, trials: int) -> None:
    share = Fraction(1, 20)
    exact = sum(math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes + 1))
    assert binomial_tail(successes, trials, 0.05) == pytest.approx(float(exact), rel=1e-9)


def test_the_ends_of_the_binomial() -> None:
    assert binomial_tail(0, 5, 0.0) == 1.0
    assert binomial_tail(4, 5, 1.0) == 0.0
    assert binomial_tail(5, 5, 1.0) == 1.0


def test_a_p_value_by_hand() -> None:
    losses = [0.0] * 98 + [0.5, 0.5]  # mean 0.01
    kl = 0.01 * math.log(0.01 / 0.05) + 0.99 * math.log(0.99 / 0.95)
    bentkus = math.e * binomial_tail(1, 100, 0.05)
    assert hoeffding_bentkus(losses, 0.05) == pytest.approx(min(math.exp(-100 * kl), bentkus))
    assert hoeffding_bentkus([0.0] * 59, 0.05) == pytest.approx(0.95**59)
    assert hoeffding_bentkus([1.0] * 10, 0.05) == 1.0
    assert hoeffding_bentkus([], 0.05) == 1.0
    assert hoeffding_bentkus([0.0] * 1000, 0.0) == 1.0


def test_the_least_text_is_where_no_loss_at_all_just_passes() -> None:
    least = least_losses(0.05, 0.05)
    assert hoeffding_bentkus([0.0] * least, 0.05) <= 0.05 < hoeffding_bentkus([0.0] * (least - 1), 0.05)


def test_a_risk_that_is_too_large_passes_as_rarely_as_was_said() -> None:
    draw = random.Random(4)
    passed = sum(hoeffding_bentkus([draw.random() < 0.1 for _ in range(80)], 0.1) <= 0.1 for _ in range(2000))
    assert 0 < passed / 2000 <= 0.1


def test_settings_are_tested_until_the_first_that_fails() -> None:
    asked: list[float] = []

    def losses_of(setting: float) -> list[float]:
        asked.append(setting)
        return [0.3 if setting == 0.5 else 0.0] * 200

    assert last_safe((0.9, 0.7, 0.5, 0.3), losses_of, 0.1, 0.05) == 0.7
    assert asked == [0.9, 0.7, 0.5]
    assert last_safe((0.5,), losses_of, 0.1, 0.05) is None


def test_drafts_are_weighed_as_by_hand() -> None:
    assert tokens_a_pass(0.5, 2) == 1.75
    assert tokens_a_pass(1.0, 3) == 4
    chosen = best_draft({2: 0.5, 4: 0.9}, 8)  # 1.5 / 1.25, 1.75 / 1.5, ...; 1.9 / 1.5, 2.71 / 2, 3.439 / 2.5, ...
    assert (chosen.exit, chosen.tokens) == (4, 3)
    assert chosen.speedup == pytest.approx(3.439 / 2.5)
