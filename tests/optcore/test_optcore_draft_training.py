"""The stage that trains a draft: what counts, what is refused, what it leaves, and how a killed one goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed, ending_at, training_run
from safetensors.torch import load_file

from optcore.draft_document import DraftDocument, load_draft_document
from optcore.drafts.block import Block
from optcore.drafts.build import build_draft
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.folder import layout_found, layout_of, read_draft, read_parts, write_draft
from optcore.drafts.fusion import Fusion
from optcore.drafts.taps import taps_of
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import DataError, OptError, OutOfMemory, RecipeError
from optcore.run import Run
from optcore.speculative.target import Target
from optcore.techniques.draft import Draft
from optcore.training import draft_stage, memory
from optcore.training.draft_features import LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_stage import train_draft
from optcore.training.draft_trainee import DraftTrainee, all_answered, answered
from optcore.training.kept_features import estimate_bytes, keep_features
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
    settings = {**SETTINGS, **changed}
    if settings.get("method") in ("medusa", "block"):
        del settings["unroll"]
    return Draft.model_validate(settings)


def short(**changed: object) -> Draft:
    return draft(steps=2, learning_rate=1e-4, validation={"samples": 2, "every": 2}, **changed)


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
    tensors = load_file(trained.out / "model.safetensors")
    assert tensors["lm_head.weight"].shape == (100, 256)
    assert tensors["t2d"].nonzero().flatten().tolist() == (tensors["d2t"] + torch.arange(100)).tolist()
    numbers = [tensor.numel() for name, tensor in tensors.items() if name.endswith("weight")]
    assert sum(numbers) == results["draft"]["parameters"]


def test_a_killed_stage_goes_on_to_the_same_draft(trained: Run, ready: Run, tmp_path: Path) -> None:
    run = again(ready, tmp_path)
    with pytest.raises(Killed), ending_at(run, 5):
        train_draft(run, draft(vocabulary=100))
    train_draft(run, draft(vocabulary=100))
    wanted, found = (load_file(one.out / "model.safetensors") for one in (trained, run))
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
        ({"vocabulary": 2049}, RecipeError, "where the model knows 2048"),
        ({"tokens": 31}, DataError, "33 tokens of a document in a row"),
    ],
)
def test_what_cannot_be_is_refused(
    changed: dict[str, Any], error: type[OptError], said: str, ready: Run, tmp_path: Path
) -> None:
    run = again(ready, tmp_path)
    with pytest.raises(error, match=said) as found:
        train_draft(run, draft().model_copy(update=changed))
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


@pytest.fixture(scope="module")
def tiny(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = tiny_model("Llama")
    return training_run(draft(), model, model, tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    "changed",
    [
        {"vocabulary": 100},
        {"layout": "modelopt"},
        {"layout": "speculators", "vocabulary": 100},
        {"method": "medusa", "vocabulary": 100},
        {"method": "mtp"},
        {"method": "block", "layers": 1},
        {"method": "block", "layers": 2, "mask_token": 1, "taps": (0,)},
    ],
)
def test_what_is_written_reads_back_as_what_was_trained(
    changed: dict[str, Any], tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, technique, trained = again(tiny, tmp_path), short(**changed), list[AnyDraft]()

    def written(model: AnyDraft, *args: Any, **more: Any) -> None:
        with torch.no_grad():
            for value in model.parameters():  # norms and heads too have moved so far that each matters
                value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        trained.append(model)
        write_draft(model, *args, **more)

    monkeypatch.setattr(draft_stage, "write_draft", written)
    train_draft(run, technique)
    target = Target(run.checkpoint, trained[0].taps)
    found, tokens_BT = read_draft(run.out, target), torch.arange(2, 42).view(2, 20)
    plain = trained[0].plain_tensors()
    rounded = {name: value.bfloat16().float() for name, value in plain.items()}
    assert any(not torch.equal(value, rounded[name]) for name, value in plain.items())
    for fusion in (module for module in trained[0].modules() if isinstance(module, Fusion)):
        assert not torch.equal(fusion.weight, fusion.plain_weight)
        fusion.settle(torch.ones_like(fusion.scale_F), keeps=False)
    trained[0].load_state_dict(rounded)
    asked: Any = (tokens_BT, torch.arange(20).expand(2, -1), target.look({"input_ids": tokens_BT}), 3)
    with torch.no_grad():
        for k, (one, other) in enumerate(zip(trained[0].answers(*asked), found.answers(*asked), strict=True)):
            assert torch.equal(trained[0].logits(one, k), found.logits(other, k))
    assert torch.equal(found.vocabulary.ids_D, trained[0].vocabulary.ids_D)
    parts = read_parts(run.out, 2)
    assert (parts.method, parts.taps, parts.mask_token) == (technique.method, trained[0].taps, technique.mask_token)
    assert layout_found(run.out) == layout_of(technique.method, technique.layout)


def test_a_draft_says_what_it_is(tiny: Run, tmp_path: Path) -> None:
    run = again(tiny, tmp_path)
    short(method="block", layers=1, mask_token=1).apply(run)
    document = load_draft_document(run.out)
    assert document == DraftDocument(method="block", tokens=3, steps=2, layout="dflash", taps=(1,), has_mask_token=True)


@pytest.mark.proof
@pytest.mark.parametrize("changed", [{}, {"method": "medusa"}, {"feature_dtype": "float32"}])
def test_kept_features_train_as_the_target_beside_does(changed: dict[str, Any], tiny: Run, tmp_path: Path) -> None:
    """The same loss at every step and the same measurements, on as many bytes as were said."""
    curves = {}
    for features in ("online", "kept"):
        run, technique = again(tiny, tmp_path / features), draft(features=features, **changed)
        if features == "kept":
            keeping, taps = again(tiny, tmp_path / "looked"), taps_of(technique, 2)
            keep_features(keeping, taps, technique.feature_dtype)
            run.features = keeping.out
            facts = Windows(run.windows).facts
            said = estimate_bytes(facts.windows, facts.length, 128, len(taps), technique.feature_dtype)
            measured = sum(path.stat().st_size for path in keeping.out.iterdir())
            assert abs(measured / said - 1) < 0.02
        train_draft(run, technique)
        series: Any = run.results["series"]
        curves[features] = torch.tensor([point[1] for one in series for point in one["points"]])
    assert len(curves["online"]) > 6
    apart = float((curves["online"] - curves["kept"]).abs().max())
    print(f"{changed}: {apart:.2e} at most apart, {measured} bytes where {said} were said")
    assert apart < 1e-4


@pytest.mark.parametrize("changed", [{"method": "block", "layers": 1, "steps": 4}, {"method": "mtp", "steps": 4}])
def test_places_that_are_drawn_are_drawn_again_alike(
    changed: dict[str, Any], tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Block, "anchors", 5)  # fewer than there are, so that another draw would show
    technique = draft(**changed, validation={"samples": 4, "every": 2})
    whole, killed = again(tiny, tmp_path / "whole"), again(tiny, tmp_path / "killed")
    train_draft(whole, technique)
    with pytest.raises(Killed), ending_at(killed, 3):
        train_draft(killed, technique)
    train_draft(killed, technique)
    assert (whole.out / "model.safetensors").read_bytes() == (killed.out / "model.safetensors").read_bytes()
    assert whole.results["series"] == killed.results["series"]
