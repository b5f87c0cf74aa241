"""How large features are, seen where a draft learns."""

from pathlib import Path

import pytest
import torch

from optcore.drafts.build import build_draft
from optcore.drafts.eagle3 import Eagle3
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.target import Target
from optcore.techniques import Draft
from optcore.training.draft_features import LiveFeatures
from optcore.training.feature_sizes import settle_fusions
from optcore.training.trainee import inputs_of
from optcore.training.windows import BEGINS, LEARNED, Batch, Windows, WindowWriter

torch.set_num_threads(1)
WINDOWS, LENGTH, PROMPTS = 6, 24, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target(stdlib_model: Path) -> Target:
    return Target(stdlib_model, (1, 2, 4))


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """The first ones hold nothing but a long prompt, of which nothing is learned."""
    tokens_BT = torch.randint(2048, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(2))
    flags_BT = torch.zeros(WINDOWS, LENGTH, dtype=torch.uint8)
    flags_BT[PROMPTS:, 8:] = LEARNED
    flags_BT[:, 0] |= BEGINS
    writer = WindowWriter(tmp_path_factory.mktemp("windows"), LENGTH)
    writer.append(Batch(tokens_BT, flags_BT))
    writer.finish("chat", 1, 0)
    return Windows(writer.folder)


def draft(target: Target) -> Eagle3:
    built = build_draft(Draft(steps=1), target, DraftVocabulary.whole(2048))
    assert isinstance(built, Eagle3)
    return built


@pytest.mark.parametrize("micro", [1, 8])
def test_they_are_those_of_learned_tokens_however_many_are_looked_at_once(
    target: Target, windows: Windows, micro: int
) -> None:
    source, settled = LiveFeatures(target, torch.float32), draft(target)
    settle_fusions(settled, source, windows, CPU, micro, keeps=False)
    (learned,) = (row for row in range(WINDOWS - 1) if row >= PROMPTS)
    tapped = target.look(inputs_of(windows.read([learned]))).tapped
    rms_F = torch.cat(tapped, -1)[0, 8:].double().square().mean(0).sqrt()
    floor = 1e-3 * rms_F.mean()
    torch.testing.assert_close(settled.fc.scale_F.double(), rms_F.clamp(min=float(floor)), rtol=1e-4, atol=0)


def test_a_draft_that_has_learned_answers_as_before(target: Target, windows: Windows) -> None:
    batch, settled = windows.read([PROMPTS]), draft(target)
    features = target.look(inputs_of(batch))
    before = next(settled.answers(batch.tokens_BT, batch.positions_BT, features, 1))
    settle_fusions(settled, LiveFeatures(target, torch.float32), windows, CPU, 1, keeps=True)
    after = next(settled.answers(batch.tokens_BT, batch.positions_BT, features, 1))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert not torch.equal(settled.fc.scale_F, torch.ones_like(settled.fc.scale_F))
