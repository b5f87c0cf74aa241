"""What training-time test buys an EAGLE-3 draft of the shipped model, printing its figures (training.md, row D1).

Budget: 300 steps of 8 windows of 128 tokens that the target wrote itself at temperature 1. Held out: what it says, at
temperature 0 and 1, behind 64 prompts that nobody trained on. Five tokens are drafted a round, as a chain; tau is
tokens a round, the target's own among them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.training import prepared
from safetensors.torch import load_file

from optcore.drafts.build import build_draft
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.target import Target
from optcore.techniques.data import TrainingData
from optcore.techniques.draft import Draft
from optcore.techniques.training import Validation
from optcore.training.draft_stage import train_draft
from optcore.training.generate import continued
from optcore.training.windows import Windows

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
DRAFTED, PROMPT, LENGTH = 5, 32, 160
DRAFT = Draft(
    steps=300,
    batch=8,
    sequence_length=128,
    learning_rate=2e-3,
    tokens=DRAFTED,
    gradient_checkpointing=False,
    validation=Validation(samples=64, every=100),
    data=TrainingData(kind="generated", prompt_tokens=PROMPT, windows=1200),
)


class Found(NamedTuple):
    """Of a draft, on held-out text."""

    greedy: float
    sampled: float
    survival: tuple[float, ...]
    """How likely each drafted token and all before it are accepted at temperature 1."""

    def line(self, name: str) -> str:
        shares = " ".join(f"{share:.3f}" for share in self.survival)
        return f"{name:<34} tau greedy {self.greedy:.3f}  T=1 {self.sampled:.3f}  accepted at T=1 {shares}"


class Spoken(NamedTuple):
    """What the target says behind the prompts."""

    greedy_BT: torch.Tensor
    sampled_BT: torch.Tensor


@pytest.fixture(scope="module")
def written(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows that the target wrote, prompts of the held-out ones behind those to train on."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("written")
    run = run_of(stdlib_model, stdlib_model, folder / "out")
    prepared(run, DRAFT, folder / "windows")
    return folder / "windows"


@pytest.fixture(scope="module")
def spoken(stdlib_model: Path, written: Path) -> Spoken:
    windows = Windows(written)
    prompts_BT = windows.read(range(windows.facts.training, windows.facts.windows)).tokens_BT[:, :PROMPT]
    model = Target(stdlib_model).model
    texts = (
        continued(model, prompts_BT, LENGTH, temperature, torch.Generator().manual_seed(7)) for temperature in (0, 1)
    )
    return Spoken(*texts)


@pytest.fixture(scope="module")
def trained(
    stdlib_model: Path, written: Path, spoken: Spoken, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Found]:
    @cache
    def _of(**changed: object) -> Found:
        torch.set_num_threads(1)
        technique = DRAFT.model_copy(update=changed)
        run = run_of(stdlib_model, stdlib_model, tmp_path_factory.mktemp("draft") / "out")
        run.windows = written
        train_draft(run, technique)
        stored = load_file(run.out / "draft.safetensors")
        ids_D = (stored.pop("d2t") + torch.arange(len(stored["lm_head.weight"]))).long()
        size = len(stored.pop("t2d"))
        noted: Any = run.results["draft"]
        target = Target(stdlib_model, noted["taps"])
        draft = build_draft(technique, target, DraftVocabulary(ids_D, size))
        draft.load_state_dict(stored)
        return _measured(draft, target, spoken)

    return _of


@torch.no_grad()
def _measured(draft: AnyDraft, target: Target, spoken: Spoken) -> Found:
    matches_KBT, _ = _compared(draft, target, spoken.greedy_BT)
    tokens, rounds = 0, 0
    for row in range(len(spoken.greedy_BT)):
        place = PROMPT - 2  # the token behind it, the prompt's last, is known
        while place + 2 + DRAFTED <= LENGTH:
            accepted = int(matches_KBT[:, row, place].cumprod(0).sum())
            tokens, rounds, place = tokens + accepted + 1, rounds + 1, place + accepted + 1
    _, ratios_KBT = _compared(draft, target, spoken.sampled_BT)
    survival_K = ratios_KBT.cumprod(0)[:, :, PROMPT - 2 : LENGTH - 1 - DRAFTED].mean((1, 2))
    return Found(tokens / rounds, 1 + float(survival_K.sum()), tuple(survival_K.tolist()))


def _compared(draft: AnyDraft, target: Target, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, B, T] at each position: whether answer k is the text's token, and min(1, q / p) of that token."""
    features = target.look({"input_ids": tokens_BT})
    log_p_BTV = target.logits(features.hidden_BTH).log_softmax(-1)
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    matches, ratios = [], []
    for k, hidden_BTH in enumerate(draft.answers(tokens_BT, positions_BT, features, DRAFTED)):
        log_q_BTV = draft.vocabulary.spread(draft.logits(hidden_BTH, k).log_softmax(-1), float("-inf"))
        said_BT1 = tokens_BT.roll(-2 - k, 1)[..., None]
        log_p = log_p_BTV.roll(-1 - k, 1).gather(-1, said_BT1)
        ratios.append((log_q_BTV.gather(-1, said_BT1) - log_p).clamp(max=0).exp()[..., 0])
        matches.append((log_q_BTV.argmax(-1) == said_BT1[..., 0]).long())
    return torch.stack(matches), torch.stack(ratios)


def test_d1_training_on_its_own_guesses_makes_rounds_longer(trained: Callable[..., Found]) -> None:
    once, four = trained(unroll=1), trained(unroll=4)
    print("\n".join((once.line("EAGLE-3, unroll 1"), four.line("EAGLE-3, unroll 4"))))
    assert four.greedy >= 1.1 * once.greedy
    assert four.sampled > once.sampled
    assert four.survival[-1] / four.survival[0] > once.survival[-1] / once.survival[0]
