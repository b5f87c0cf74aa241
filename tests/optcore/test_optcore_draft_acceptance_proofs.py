"""The measurement of drafts against loops that really draft, on the shipped model less two of its six layers, printing
its figures. Every token of the loops is computed from nothing: no cache, no batch."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import CALIBRATION
from fixtures.skipping_draft import SAMPLED, LookingUp, Skipping, drafting_loop, sampling_loop, skipping

from optcore.calibration.text import Texts
from optcore.speculative.acceptance import measure_acceptance
from optcore.speculative.estimate import survival
from optcore.speculative.interval import ratio_interval
from optcore.speculative.own_text import write_text
from optcore.speculative.sampling import GREEDY
from optcore.speculative.teacher_forced import teacher_forced

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]
COUNT = 5


@pytest.fixture(scope="module")
def draft(stdlib_model: Path) -> Skipping:
    return skipping(stdlib_model)


@pytest.fixture(scope="module")
def prompts(stdlib_model: Path) -> torch.Tensor:
    return Texts(stdlib_model, CALIBRATION, ()).evaluation_windows(256, 32, 1024)


def test_the_greedy_walk_is_the_loop(draft: Skipping, prompts: torch.Tensor) -> None:
    """D3: 6 prompts, texts and accept sequences identical."""
    new = 96
    text = write_text(draft.target, prompts[:6], new, GREEDY, frozenset())
    walked = teacher_forced(draft.target, draft, text, COUNT, GREEDY).chains
    looped = [drafting_loop(draft, prompt, new, COUNT) for prompt in prompts[:6].tolist()]
    rounds = sum(len(accepted) for _, accepted in looped)
    print(f"\n{rounds} rounds over 6 prompts, tau {walked.tau:.3f}")
    assert text.written() == [written for written, _ in looped]
    assert walked.accepted == [accepted for _, accepted in looped]


def test_the_estimator_is_rejection_sampling(draft: Skipping, prompts: torch.Tensor) -> None:
    """D4: rounds of a real loop at temperature 1, against text that the target drew alone: within 3 standard errors."""
    new, generator = 24, torch.Generator().manual_seed(7)
    text = write_text(draft.target, prompts, new, SAMPLED, frozenset(), seed=1)
    chains = teacher_forced(draft.target, draft, text, COUNT, SAMPLED).chains
    looped = [sampling_loop(draft, prompt, new, COUNT, generator) for prompt in prompts[:96].tolist()]
    print()
    weights_SNK = chains.is_text_SNK * chains.visits_SN[..., None]
    for k, estimated in enumerate(survival(chains).tolist()):
        real_S = torch.tensor([[sum(kept > k for kept in _full(row, new)), len(_full(row, new))] for _, row in looped])
        over_S = (weights_SNK * chains.reached_SNK)[..., k].sum(1)
        real, real_error = _ratio(real_S[:, 0].double(), real_S[:, 1].double())
        _, error = _ratio(over_S, weights_SNK[..., k].sum(1))
        print(f"P(>= {k + 1})  estimated {estimated:.3f} (s.e. {error:.3f})  real {real:.3f} (s.e. {real_error:.3f})")
        assert abs(real - estimated) <= 3 * (error**2 + real_error**2) ** 0.5
    rounds_S = torch.tensor([float(len(accepted)) for _, accepted in looped])
    tau, tau_error = _ratio(torch.full_like(rounds_S, new - 1), rounds_S)
    _, error = _ratio(chains.starts_S.double(), chains.rounds_S)
    alike = 1 + float(survival(chains, by_round=False).sum())
    print(f"tau  estimated {chains.tau:.3f} (s.e. {error:.3f})  real {tau:.3f} (s.e. {tau_error:.3f})")
    print(f"1 + sum over all starts alike, in endless text: {alike:.3f}")
    assert abs(tau - chains.tau) <= 3 * (error**2 + tau_error**2) ** 0.5


def test_greedy_text_flatters(draft: Skipping, prompts: torch.Tensor) -> None:
    """D5: loops are found, and sampled text stands beside them."""
    facts = measure_acceptance(
        draft.target, draft, LookingUp, prompts[:32], count=COUNT, new_tokens=128, sampled=SAMPLED
    )
    print()
    for name, at in (("greedy", facts.greedy), ("T=1", facts.sampled)):
        for who, found in (("draft", at.draft), ("lookup", at.ngram)):
            assert found
            without = f"{found.tau_without_loops:.2f}" if found.tau_without_loops else "-"
            print(
                f"{name:<6} {who:<6} tau {found.tau:.2f} [{found.interval.low:.2f}, {found.interval.high:.2f}]"
                f"  without loops {without}  looping {at.looping:.0%}"
            )
    assert facts.greedy.looping > facts.sampled.looping
    assert facts.greedy.ngram.tau > facts.sampled.ngram.tau


def _full(accepted: list[int], new: int) -> list[int]:
    """Rounds that had room for a whole chain."""
    left, full = new - 1, []
    for kept in accepted:
        if left > COUNT:
            full.append(kept)
        left -= kept + 1
    return full


def _ratio(over_S: torch.Tensor, under_S: torch.Tensor) -> tuple[float, float]:
    """A ratio of sums over prompts, and its standard error (delta method)."""
    ratio = float(over_S.sum() / under_S.sum())
    interval = ratio_interval(over_S, under_S)
    assert interval.low <= ratio <= interval.high
    return ratio, float(((over_S - ratio * under_S) / under_S.mean()).std() / len(over_S) ** 0.5)
