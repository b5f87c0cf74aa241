"""What training buys drafts of the shipped model, each test printing its figures (training.md, rows D1 and D2).

Drafts learn on text that the target wrote itself, half of it greedily and half at temperature 1, and are measured as a
job's report measures them: behind held-out prompts, as a chain of five tokens a round; tau is tokens a pass, the
target's own among them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures.exporting import CALIBRATION, run_of
from fixtures.training import prepared

from optcore.calibration.text import Texts
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.folder import read_draft, read_parts
from optcore.drafts.small_model import SmallModel
from optcore.speculative.acceptance import AcceptanceFacts, measure_acceptance
from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Target
from optcore.techniques.data import TrainingData
from optcore.techniques.draft import Draft
from optcore.techniques.training import Validation
from optcore.training.draft_stage import train_draft
from optcore.training.small_model import make_small_model

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
DRAFTED, PROMPTS = 5, 64
DRAFT = Draft(
    steps=1000,
    batch=8,
    sequence_length=128,
    learning_rate=4e-3,
    tokens=DRAFTED,
    gradient_checkpointing=False,
    validation=Validation(samples=64, every=200),
    data=TrainingData(kind="answers", prompt_tokens=32, windows=4000),
)


@pytest.fixture(scope="module")
def written(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows that the target wrote."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("written")
    prepared(run_of(stdlib_model, stdlib_model, folder / "out"), DRAFT, folder / "windows")
    return folder / "windows"


@pytest.fixture(scope="module")
def trained(
    stdlib_model: Path, written: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AcceptanceFacts]:
    @cache
    def _of(**changed: object) -> AcceptanceFacts:
        torch.set_num_threads(1)
        run = run_of(stdlib_model, stdlib_model, tmp_path_factory.mktemp("draft") / "out")
        run.windows = written
        technique = DRAFT.model_copy(update=changed)
        if technique.method == "model":
            make_small_model(run, technique)
            target = Target(stdlib_model)
            return measured(stdlib_model, target, SmallModel(run.out, target.vocabulary))
        train_draft(run, technique)
        target = Target(stdlib_model, read_parts(run.out, 6).taps)
        return measured(stdlib_model, target, read_draft(run.out, target))

    return _of


def measured(model: Path, target: Target, draft: AnyDraft) -> AcceptanceFacts:
    prompts_SP = Texts(model, CALIBRATION, ()).evaluation_windows(PROMPTS, 32, 1024)
    sampled = Sampling(temperature=1.0)
    return measure_acceptance(target, draft, NgramDrafter, prompts_SP, count=DRAFTED, new_tokens=128, sampled=sampled)


def line(name: str, facts: AcceptanceFacts) -> str:
    """Greedy and sampled side by side, with n-grams beside both."""
    said = [f"{name:<20}"]
    for at in (facts.greedy, facts.sampled):
        own, low, high = at.own, at.own.interval.low, at.own.interval.high
        shares = " ".join(f"{share:.3f}" for share in own.survival)
        said.append(
            f"T={at.sampling.temperature:g}: tau {own.tau:.3f} [{low:.2f}, {high:.2f}], n-grams {at.ngram.tau:.3f}, "
            f"{at.looping:.0%} loop; accepted {shares}"
        )
    return "\n  ".join(said)


def test_d1_training_on_its_own_guesses_makes_rounds_longer(trained: Callable[..., AcceptanceFacts]) -> None:
    once, four = trained(unroll=1), trained(unroll=4)
    print("\n" + "\n".join((line("EAGLE-3, unroll 1", once), line("EAGLE-3, unroll 4", four))))
    assert four.greedy.own.tau >= 1.1 * once.greedy.own.tau
    assert four.sampled.own.tau > once.sampled.own.tau
    assert four.sampled.own.tau >= 1.5 * four.sampled.ngram.tau
    fades = [found.survival[-1] / found.survival[0] for found in (once.sampled.own, four.sampled.own)]
    assert fades[1] > fades[0]


def test_d2_what_its_target_says_makes_a_small_model_a_better_draft(trained: Callable[..., AcceptanceFacts]) -> None:
    """Of three of the target's six layers, as they are and taught."""
    small = {"method": "model", "layers": 3}
    before, after = trained(**small, steps=0), trained(**small, steps=400, learning_rate=1e-3)
    print("\n" + "\n".join((line("3 of 6 layers", before), line("taught for 400 steps", after))))
    for untaught, taught in ((before.greedy, after.greedy), (before.sampled, after.sampled)):
        assert taught.own.tau >= untaught.own.tau + 0.4
