"""The walk over a text that is there, against loops that really draft, verify and sample."""

import itertools
import random
from functools import cache

import pytest
import torch

from optcore.acceptance_length import AcceptanceLength, Interval
from optcore.speculative.estimate import conditional, odds, survival
from optcore.speculative.interval import ratio_interval
from optcore.speculative.repetition import loops
from optcore.speculative.walk import Chains, walk

COUNT = 3
P = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1]], dtype=torch.float64)
"""Chances of the next token by the last one: of the target, in quarters, and of the draft."""


def real_loop(next_of: dict[int, int], guess_of: dict[int, int], first: int, limit: int, end: int) -> list[list[int]]:
    """Greedy speculative decoding as a serving engine does it: what it wrote, and what was accepted in each round."""
    written, accepted = [first], []
    while len(written) < limit and written[-1] != end:
        drafted, last = [], written[-1]
        for _ in range(min(COUNT, limit - len(written) - 1)):  # the target's own token is still to fit
            last = guess_of[last]
            drafted.append(last)
        kept, context = 0, written[-1]
        while kept < len(drafted) and drafted[kept] == next_of[context] and written[-1] != end:
            context = drafted[kept]
            written.append(context)
            kept += 1
        accepted.append(kept)
        if len(written) < limit and written[-1] != end:
            written.append(next_of[context])
    return [written, accepted]


@pytest.mark.parametrize("seed", range(40))
def test_the_walk_accepts_what_a_real_loop_does(seed: int) -> None:
    drawn = random.Random(seed)
    tokens, limit, end = range(9), drawn.randint(2, 24), 8
    next_of = {token: drawn.choice(tokens) for token in tokens}
    guess_of = {token: next_of[token] if drawn.random() < 0.75 else drawn.choice(tokens) for token in tokens}
    written, accepted = real_loop(next_of, guess_of, drawn.choice(range(8)), limit, end)
    odds_NK = torch.zeros(limit - 1, COUNT)
    for start in range(len(written) - 1):
        guess = written[start]
        for k, real in enumerate(written[start + 1 : start + 1 + COUNT]):
            guess = guess_of[guess if k == 0 else written[start + k]]
            odds_NK[start, k] = guess == real
    chains = Chains(odds_NK[None], torch.tensor([len(written) - 1]))
    assert chains.accepted == [accepted]
    assert chains.rounds_S.tolist() == [len(accepted)]
    if accepted:
        assert chains.tau == (len(written) - 1) / len(accepted)


def test_the_last_round_leaves_only_what_is_of_the_text() -> None:
    assert walk([3, 0, 0, 0, 2, 0]) == [3, 2]  # four tokens, then two: an end-of-text token was accepted
    assert walk([5, 0]) == [2]
    assert walk([0, 0, 0]) == [0, 0, 0]
    assert walk([]) == []


def every_text(length: int) -> Chains:
    """All texts behind token 0, each as often as its probability times a power of four: their mean is the exact one.
    The last token is never drafted."""
    rows = []
    for text in itertools.product(range(3), repeat=length):
        pairs = list(itertools.pairwise((0, *text)))
        times = round(4**length * float(torch.stack([P[a, b] for a, b in pairs]).prod()))
        of_text = odds(torch.stack([Q[a, b] for a, b in pairs]), torch.stack([P[a, b] for a, b in pairs]))
        padded = torch.cat((of_text, torch.zeros(COUNT, dtype=torch.float64)))
        rows += [padded.unfold(0, COUNT, 1)[:length]] * times
    return Chains(torch.stack(rows), torch.full((len(rows),), length))


def test_the_estimator_is_the_sum_of_minima() -> None:
    chains = every_text(COUNT + 1)
    exact = [
        sum(
            float(torch.stack([torch.minimum(P[a, b], Q[a, b]) for a, b in itertools.pairwise((0, *text))]).prod())
            for text in itertools.product(range(3), repeat=k)
        )
        for k in range(1, COUNT + 1)
    ]
    found = chains.reached_SNK[:, 0].mean(0)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)
    assert 1 + float(found.sum()) == pytest.approx(1 + sum(exact), rel=1e-12)


def test_expected_rounds_are_those_of_rejection_sampling() -> None:
    """The real loop, all its coins tossed both ways: min(p, q) accepted, max(p - q, 0) drawn after a rejection."""
    length = 4

    @cache
    def rounds(last: int, left: int) -> float:
        return 1 + after(last, left, 0) if left else 0.0

    @cache
    def after(last: int, left: int, drafted: int) -> float:
        """Expected rounds behind this one, in whose midst we are."""
        if not left:
            return 0.0
        if drafted == COUNT or left == 1:
            return sum(float(P[last, token]) * rounds(token, left - 1) for token in range(3))
        accepted = torch.minimum(P[last], Q[last])
        corrected = (P[last] - Q[last]).clamp(min=0)
        return sum(
            float(accepted[token]) * after(token, left - 1, drafted + 1)
            + float(corrected[token]) * rounds(token, left - 1)
            for token in range(3)
        )

    assert float(every_text(length).rounds_S.mean()) == pytest.approx(rounds(0, length), rel=1e-12)


def drawn_chains(generator: torch.Generator, count: int) -> torch.Tensor:
    """Accepted tokens [count] of chains that are drafted, verified and rejected, behind token 0."""
    last = torch.zeros(count, dtype=torch.long)
    accepted, alive = torch.zeros(count), torch.ones(count, dtype=torch.bool)
    for _ in range(COUNT):
        guess = torch.multinomial(Q[last], 1, generator=generator)[:, 0]
        coin = torch.rand(count, generator=generator, dtype=torch.float64)
        alive &= coin < P[last, guess] / Q[last, guess]
        accepted += alive
        last = guess
    return accepted


def test_the_estimator_agrees_with_rejection_sampling() -> None:
    samples, generator = 40_000, torch.Generator().manual_seed(5)
    accepted = drawn_chains(generator, samples)
    texts = [torch.zeros(samples, dtype=torch.long)]
    for _ in range(COUNT):
        texts.append(torch.multinomial(P[texts[-1]], 1, generator=generator)[:, 0])
    pairs = list(itertools.pairwise(texts))
    of_text = torch.stack([odds(Q[a, b], P[a, b]) for a, b in pairs], 1)
    chances = of_text.cumprod(1)
    for k in range(COUNT):
        real = (accepted > k).double()
        error = (real.var() / samples + chances[:, k].var() / samples).sqrt()
        assert abs(float(real.mean() - chances[:, k].mean())) < 3 * float(error)


def test_survival_is_by_round_and_conditional_by_what_came_so_far() -> None:
    matches = [[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    chains = Chains(torch.tensor([matches]).float(), torch.tensor([6]))
    assert chains.accepted == [[2, 1, 0]]  # starts 0, 3 and 5; the text's last token is never drafted
    assert survival(chains).tolist() == [1.0, 0.5, 0.0]
    assert conditional(chains).tolist() == [1.0, 0.5, 0.0]
    assert survival(chains, by_round=False).tolist() == pytest.approx([4 / 5, 2 / 4, 1 / 3])
    assert conditional(chains, by_round=False).tolist() == pytest.approx([4 / 5, 2 / 3, 1 / 2])


def test_a_token_out_of_the_targets_reach_is_accepted_where_the_draft_gives_it_anything() -> None:
    assert odds(torch.tensor([0.2, 0.0, 0.5]), torch.tensor([0.0, 0.0, 0.25])).tolist() == [1.0, 0.0, 1.0]


def test_the_interval_is_that_of_all_resamples() -> None:
    """Of two prompts there are four: ratios 1, 2, 2 and 3."""
    found = ratio_interval(torch.tensor([1.0, 3.0]), torch.ones(2))
    assert (found.low, found.high) == (1.0, 3.0)
    assert ratio_interval(torch.tensor([4, 4]), torch.tensor([2.0, 2.0])) == Interval(low=2.0, high=2.0)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    """Of a ratio of means the variance is that of (x - r y) / mean(y), over S."""
    generator = torch.Generator().manual_seed(0)
    under = 20 + torch.randint(0, 10, (300,), generator=generator).double()
    over = 2 * under + torch.randn(300, generator=generator, dtype=torch.float64) * 5
    ratio = float(over.sum() / under.sum())
    error = float(((over - ratio * under) / under.mean()).std() / 300**0.5)
    found = ratio_interval(over, under, seed=1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found == ratio_interval(over, under, seed=1)
    assert found.low <= ratio <= found.high


def lengths_of_texts(tau: float, generator: torch.Generator) -> AcceptanceLength:
    """Of 32 texts, some of which end early, and some of which are guessed more easily than others."""
    starts_S = torch.where(torch.rand(32, generator=generator) < 0.25, 40, 127)
    tau_S = 1 + (tau - 1) * (0.3 * torch.randn(32, generator=generator, dtype=torch.float64)).exp()
    rounds_S = starts_S / tau_S
    interval = ratio_interval(starts_S, rounds_S, int(starts_S.sum()))
    return AcceptanceLength(tau=float(starts_S.sum() / rounds_S.sum()), interval=interval)


def share_found(first: float, second: float, trials: int = 1000) -> float:
    """Of pairs of measurements that are said to differ."""
    generator = torch.Generator().manual_seed(6)
    pairs = ((lengths_of_texts(first, generator), lengths_of_texts(second, generator)) for _ in range(trials))
    return sum(one.differs_from(other) for one, other in pairs) / trials


def test_equal_drafts_seldom_differ_and_a_loss_is_found() -> None:
    assert 0.02 <= share_found(2.4, 2.4) <= 0.06
    assert share_found(2.4, 2.04, 100) > 0.9


def test_the_noise_of_both_counts_on_the_sides_that_face_each_other() -> None:
    def length(tau: float, low: float, high: float) -> AcceptanceLength:
        return AcceptanceLength(tau=tau, interval=Interval(low=low, high=high))

    one = length(2.0, 1.0, 2.3)
    for apart, differs in ((0.51, True), (0.49, False)):  # 0.3 and 0.4 in quadrature are 0.5
        other = length(2.0 + apart, 1.6 + apart, 9.0)
        assert (one.differs_from(other), other.differs_from(one)) == (differs, differs)


@pytest.mark.parametrize(
    ("tokens", "is_loop"),
    [
        ([7] * 12, True),
        ([1, 2, 3, 4, 5, 6] + [7, 8, 9] * 4, True),
        ([1, 2, 3, 4, 5, 6] + [7, 8, 9] * 4 + [7, 8], True),  # cut within a turn
        ([7, 8, 9] * 4 + [1, 2, 3, 4, 5, 6], False),  # it got out
        ([1, 2, 3, 4, 5, 6, 7, 8] + [9] * 6, False),  # less than half
        ([1, 2, 3, 4, 1, 2, 3, 4], False),  # twice may be meant
        ([5, 5], False),
        ([], False),
    ],
)
def test_a_loop_is_half_a_text_of_turns(tokens: list[int], is_loop: bool) -> None:
    assert loops(tokens) is is_loop
