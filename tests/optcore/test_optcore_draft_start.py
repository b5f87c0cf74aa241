"""A draft to begin with is brought here like a model, and is none: its files, and the tokens that it speaks of."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.hub import HubPeer
from fixtures.tiny_models import MakeModel
from fixtures.training import training_run
from safetensors.torch import save_file

import optcore.sources.client
from optcore.acceptance_length import AcceptanceLength, Interval
from optcore.draft_document import load_draft_document
from optcore.draft_made import MADE, Asked, Made, read_made
from optcore.drafts.folder import read_draft
from optcore.errors import (
    BadCheckpoint,
    OptError,
    RecipeError,
    SourceNotFound,
    UnsafeCheckpoint,
    VocabularyMismatch,
)
from optcore.references import ModelRef
from optcore.run import Run
from optcore.sources.drafts import check_draft_fits, fetch_draft
from optcore.sources.models import FetchedModel
from optcore.speculative.target import Target
from optcore.techniques import Draft
from optcore.training.draft_features import LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_plan import planned_draft
from optcore.training.draft_stage import train_draft
from optcore.training.draft_trainee import DraftTrainee
from optcore.training.windows import Windows

PLACE = "/chain/0/start"


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """As EAGLE-3 drafts are published: a configuration like a model's, no tokenizer."""
    return write_draft(tmp_path / "draft", {"vocab_size": 2048, "draft_vocab_size": 1024, "hidden_size": 256})


def write_draft(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLMEagle3"], **config}))
    save_file({"fc.weight": torch.ones(2, 3)}, folder / "model.safetensors")
    return folder


def fetched(ref: ModelRef, cache: Path) -> FetchedModel:
    return fetch_draft(ref, cache, lambda *_: None, PLACE)


def refused(folder: Path, kind: type[OptError]) -> str:
    with pytest.raises(kind) as caught:
        fetched(ModelRef(path=str(folder)), folder.parent)
    assert caught.value.field == f"{PLACE}/path"
    assert caught.value.remedy
    return caught.value.message


def test_a_folder_is_used_where_it_lies(draft: Path, tmp_path: Path) -> None:
    found = fetched(ModelRef(path=str(draft)), tmp_path)
    assert found[:2] == (draft, None)
    other = write_draft(tmp_path / "medusa", {"medusa_num_heads": 3})
    assert fetched(ModelRef(path=str(other)), tmp_path).digest != found.digest


def test_a_repository_is_pinned_and_gives_the_same_digest(
    hub: HubPeer, draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", (0.01, 0.01))
    commit = hub.put_folder("me/draft", draft)
    found = fetched(ModelRef(id="me/draft"), tmp_path / "cache")
    assert found.revision == commit
    assert found.digest == fetched(ModelRef(path=str(draft)), tmp_path).digest
    hub.put("me/pickled", {"config.json": "{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UnsafeCheckpoint, match=r"pytorch_model\.bin") as caught:
        fetched(ModelRef(id="me/pickled"), tmp_path / "cache")
    assert caught.value.field == f"{PLACE}/id"


def test_what_is_missing_cut_or_pickled_is_refused(draft: Path, tmp_path: Path) -> None:
    weights = draft / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "cut or damaged" in refused(draft, BadCheckpoint)
    weights.unlink()
    assert "has neither" in refused(draft, BadCheckpoint)
    (draft / "pytorch_model.bin").write_bytes(whole)
    assert "pickled" in refused(draft, UnsafeCheckpoint)
    weights.symlink_to(shutil.copy(draft / "config.json", tmp_path / "outside.safetensors"))
    assert "leaves the folder" in refused(draft, UnsafeCheckpoint)
    (draft / "config.json").unlink()
    assert "no config.json" in refused(draft, BadCheckpoint)
    assert "absent" in refused(tmp_path / "absent", SourceNotFound)


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ({"vocab_size": 4096}, VocabularyMismatch, "a model of 4096 tokens, and this one has 2048"),
        ({"transformer_layer_config": {"vocab_size": 32000}}, VocabularyMismatch, "32000"),
        ({"vocab_size": 2048, "draft_vocab_size": 2049}, BadCheckpoint, "says 2049 tokens, and the model knows 2048"),
    ],
)
def test_a_draft_for_another_model_is_refused(
    stdlib_model: Path, tmp_path: Path, config: dict[str, Any], kind: type[OptError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        check_draft_fits(stdlib_model, write_draft(tmp_path / "other", config), PLACE)
    assert caught.value.field == PLACE


def test_a_tokenizer_beside_the_draft_must_be_the_models(stdlib_model: Path, draft: Path) -> None:
    check_draft_fits(stdlib_model, draft, PLACE)
    shutil.copy(stdlib_model / "tokenizer.json", draft)
    check_draft_fits(stdlib_model, draft, PLACE)
    tokenizer = json.loads((draft / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(VocabularyMismatch, match="2 of 2048 tokens"):
        check_draft_fits(stdlib_model, draft, PLACE)


@pytest.fixture(scope="module")
def target(tiny_model: MakeModel) -> Path:
    return tiny_model("Llama")


@pytest.fixture(scope="module")
def made(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EAGLE-3 draft that trained for a step."""
    return trained(target, tmp_path_factory.mktemp("made"), vocabulary=100).out


def trained(model: Path, folder: Path, begun: Path | None = None, **changed: object) -> Run:
    technique = technique_of(begun, **changed)
    run = training_run(technique, model, model, folder)
    run.models = (begun,) if begun else ()
    train_draft(run, technique)
    return run


def technique_of(begun: Path | None = None, **changed: object) -> Draft:
    settings = {"steps": 1, "batch": 4, "sequence_length": 32, "tokens": 3, "data": {"kind": "text"}}
    start = {"start": {"path": str(begun)}} if begun else {}
    measured = {"validation": {"samples": 4, "every": 3}}
    return Draft.model_validate({**settings, **measured, **start, **changed})


def test_training_goes_on_from_the_draft_that_was_named(made: Path, target: Path, tmp_path: Path) -> None:
    run = trained(target, tmp_path, made, steps=2)
    model = Target(target, (0, 1))
    begun, head = read_draft(made, model), model.head
    assert head
    source, loss = LiveFeatures(model, torch.bfloat16), DraftLoss(head, begun.vocabulary, "kl")
    trainee = DraftTrainee(begun, source, loss, depth=4, decay=0.8, drafted=3)
    windows = Windows(run.windows)
    held = list(range(windows.facts.training, windows.facts.windows))
    sums = trainee(windows.read(held), held, None)
    results: Any = run.results
    for name in ("loss_1", "loss_3", "refused"):
        wanted = float(sums[name] / sums["tokens"])
        assert results["training"]["start"][name] == pytest.approx(wanted, rel=1e-5)
    assert results["training"]["steps"] == 2
    assert results["draft"]["parameters"] == sum(value.numel() for value in begun.parameters())
    assert torch.equal(read_draft(run.out, model).vocabulary.ids_D, begun.vocabulary.ids_D)


ACHIEVED = Made(
    asked=Asked(
        count=3,
        prompts=2,
        prompt_tokens=8,
        new_tokens=8,
        temperature=1,
        top_k=None,
        top_p=None,
        text="a" * 64,
        seed=0,
    ),
    greedy=AcceptanceLength(tau=2.5, interval=Interval(low=2, high=3)),
    sampled=AcceptanceLength(tau=1.5, interval=Interval(low=1, high=2)),
)


def test_with_no_steps_the_draft_that_was_named_is_the_draft(made: Path, target: Path, tmp_path: Path) -> None:
    run = run_of(target, target, tmp_path / "out")
    run.models = (made,)
    technique_of(made, steps=0).apply(run)
    for name in ("config.json", "model.safetensors"):
        assert (run.out / name).read_bytes() == (made / name).read_bytes()
    document = load_draft_document(run.out)
    assert document
    assert (document.method, document.tokens, document.steps, document.taps) == ("eagle3", 3, 0, (0, 1))
    assert read_made(run.out) is None, "nothing is measured here"
    ACHIEVED.save(made)
    technique_of(made, steps=0).apply(run)
    assert read_made(run.out) == ACHIEVED
    (made / MADE).unlink()


def test_how_a_draft_did_belongs_to_it(stdlib_model: Path, draft: Path, tmp_path: Path) -> None:
    digests = {fetched(ModelRef(path=str(draft)), tmp_path).digest}
    ACHIEVED.save(draft)
    digests.add(fetched(ModelRef(path=str(draft)), tmp_path).digest)
    assert len(digests) == 2
    check_draft_fits(stdlib_model, draft, PLACE)
    (draft / MADE).write_text('{"rate": 1}')
    with pytest.raises(BadCheckpoint, match=MADE) as caught:
        check_draft_fits(stdlib_model, draft, PLACE)
    assert caught.value.field == PLACE


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "medusa"}, "is of the method eagle3, and not medusa"),
        ({"taps": (1,)}, r"reads the layers \[0, 1\], and `taps` are \[1\]"),
        ({"vocabulary": 90}, "says 100 tokens, and `vocabulary` is 90"),
    ],
)
def test_a_draft_that_is_another_is_refused(
    made: Path, target: Path, tmp_path: Path, changed: dict[str, Any], said: str, steps: int
) -> None:
    technique = technique_of(made, steps=steps, **changed)
    run = run_of(target, target, tmp_path / "out")
    run.models, run.stage = (made,), "1-draft"
    with pytest.raises(RecipeError, match=said) as caught:
        planned_draft(run, technique)
    assert caught.value.remedy
    assert caught.value.field.endswith("/start")


def test_a_draft_of_more_tokens_than_it_has_heads_or_for_another_model(
    target: Path, stdlib_model: Path, tmp_path: Path
) -> None:
    heads = trained(target, tmp_path, method="medusa").out
    run = run_of(target, target, tmp_path / "other")
    run.models, run.stage = (heads,), "1-draft"
    with pytest.raises(RecipeError, match="guesses 3 tokens at once, and `tokens` are 4"):
        planned_draft(run, technique_of(heads, method="medusa", tokens=4))
    assert planned_draft(run, technique_of(heads, method="medusa", tokens=2)).begun
    with pytest.raises(BadCheckpoint, match="says hidden_size: 128, and its target has 256"):
        read_draft(heads, Target(stdlib_model))
