"""The stage that trains a draft: what counts, what is refused, what it leaves, and how a killed one goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed, ending_at, training_run
from safetensors.torch import load_file

from optcore.drafts.build import build_draft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import DataError, OptError, OutOfMemory, RecipeError
from optcore.run import Run
from optcore.speculative.target import Target
from optcore.techniques.draft import Draft
from optcore.training import memory
from optcore.training.draft_features import LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_stage import train_draft
from optcore.training.draft_trainee import DraftTrainee, all_answered, answered
from optcore.training.windows import BEGINS, LEARNED, Batch, Windows

torch.set_num_threads(1)
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "sequence_length": 32,
    "learning_rate": 3e-3,
    "tokens": 3,
    "unroll": 2,
    "validation": {"samples": 4, "every": 3},
    "data": {"kind": "text"},
}


def draft(**changed: object) -> Draft:
    return Draft.model_validate({**SETTINGS, **changed})


def test_an_answer_counts_where_its_token_is_learned_in_the_same_document() -> None:
    begins, unlearned, length = {0, 5}, {0, 1, 5, 9}, 12
    flags = [(BEGINS if place in begins else 0) | (0 if place in unlearned else LEARNED) for place in range(length)]
    batch = Batch(torch.zeros(1, length, dtype=torch.long), torch.tensor([flags], dtype=torch.uint8))
    together = torch.ones(1, length, dtype=torch.bool)
    for k in range(4):
        wanted = []
        for place in range(length):
            ahead = place + 2 + k
            is_same = ahead < length and not any(place < begin <= ahead for begin in begins)
            wanted.append(is_same and ahead not in unlearned)
        assert answered(batch, k).tolist() == [wanted]
        together &= answered(batch, k)
    assert torch.equal(all_answered(batch, 4), together)
    assert not answered(batch, 30).any()


@pytest.fixture(scope="module")
def ready(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return training_run(draft(), stdlib_model, stdlib_model, tmp_path_factory.mktemp("ready"))


def again(run: Run, folder: Path) -> Run:
    """Another run on the same windows."""
    other = run_of(run.source, run.checkpoint, folder / "out")
    other.windows, other.stage = run.windows, "1-draft"
    return other


@pytest.fixture(scope="module")
def trained(ready: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = again(ready, tmp_path_factory.mktemp("trained"))
    train_draft(run, draft(vocabulary=100))
    return run


def test_a_stage_leaves_a_draft_and_what_is_known_of_it(trained: Run) -> None:
    results: Any = trained.results
    start, best = results["training"]["start"], results["training"]["best"]
    assert best["refused"] < start["refused"]
    assert best["length"] == pytest.approx(4 - best["refused"])
    assert {f"{name}_{number}" for name in ("loss", "agreement", "acceptance") for number in (1, 2, 3)} <= set(best)
    assert results["draft"]["taps"] == [1, 2, 4]
    assert 0.5 < results["draft"]["covered"] < 1
    assert "can say 100 of 2048 tokens" in results["notices"][0]
    tensors = load_file(trained.out / "draft.safetensors")
    assert tensors["lm_head.weight"].shape == (100, 256)
    assert tensors["t2d"].nonzero().flatten().tolist() == (tensors["d2t"] + torch.arange(100)).tolist()
    numbers = [tensor.numel() for name, tensor in tensors.items() if name.endswith("weight")]
    assert sum(numbers) == results["draft"]["parameters"]


def test_a_killed_stage_goes_on_to_the_same_draft(trained: Run, ready: Run, tmp_path: Path) -> None:
    run = again(ready, tmp_path)
    with pytest.raises(Killed), ending_at(run, 5):
        train_draft(run, draft(vocabulary=100))
    train_draft(run, draft(vocabulary=100))
    wanted, found = (load_file(one.out / "draft.safetensors") for one in (trained, run))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_parts_of_a_step_add_up_to_it(stdlib_model: Path, ready: Run) -> None:
    target = Target(stdlib_model, (1, 2, 4))
    assert target.head
    vocabulary = DraftVocabulary.whole(target.vocabulary)
    model = build_draft(draft(), target, vocabulary, seed=2)
    loss = DraftLoss(target.head, vocabulary, "lk")
    source = LiveFeatures(target, torch.bfloat16)
    trainee = DraftTrainee(model, source, loss, depth=2, decay=0.5, drafted=3)
    windows = Windows(ready.windows)
    whole = trainee(windows.read([0, 1, 2]), [0, 1, 2], 0.0)
    parts = sum(trainee(windows.read([number]), [number], 0.0) for number in range(3))
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), rel=1e-5)
    found = trainee(windows.read([0, 1]), [0, 1], None)
    assert set(found) == set(trainee.measures)
    features = source.features(windows.read([0]), [0])
    for values in features.tapped:
        assert torch.equal(values, values.bfloat16().float())
        assert values.dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"taps": (1, 6)}, RecipeError, "layers from 0 to 5"),
        ({"taps": (1, 1)}, RecipeError, "different layers"),
        ({"vocabulary": 2049}, RecipeError, "where the model knows 2048"),
        ({"tokens": 31}, DataError, "33 tokens of a document in a row"),
    ],
)
def test_what_cannot_be_is_refused(
    changed: dict[str, Any], error: type[OptError], said: str, ready: Run, tmp_path: Path
) -> None:
    run = again(ready, tmp_path)
    with pytest.raises(error, match=said) as found:
        train_draft(run, draft(**changed))
    assert found.value.remedy
    assert found.value.field.startswith("/chain")


def test_an_encoder_has_no_draft(tiny_model: MakeModel, ready: Run, tmp_path: Path) -> None:
    run = again(ready, tmp_path)
    run.checkpoint = tiny_model("Bert")
    with pytest.raises(RecipeError, match="is an encoder"):
        train_draft(run, draft())


def test_a_machine_too_small_is_told_before_anything_is_loaded(
    ready: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2.0**20)
    run = again(ready, tmp_path)
    with pytest.raises(OutOfMemory, match="its target beside it"):
        train_draft(run, draft())
