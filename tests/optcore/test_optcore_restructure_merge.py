"""Merged checkpoints: what they hold, which models are refused, and whole runs from a recipe."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.engine import optimize
from optcore.errors import BadCheckpoint, RecipeError, VocabularyMismatch
from optcore.events import AnyEvent, Notice, StageFinished
from optcore.fetching import fetch_work
from optcore.paths import with_paths
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.stage import Inputs, StageTask
from optcore.stages import perform
from optcore.streaming.writer import TensorWriter
from optcore.techniques.merge import Merge

Tensors = dict[str, torch.Tensor]


def _perturbed(source: Path, folder: Path, seed: int) -> Path:
    """A copy that some training moved away."""
    shutil.copytree(source, folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * 0.1 * tensor.float().std(correction=0)
        tensors[name] = (tensor.float() + noise + 0.01).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> tuple[Path, Path, Path]:
    base = tiny_model("Llama")
    return base, _perturbed(base, tmp_path / "a", 1), _perturbed(base, tmp_path / "b", 2)


def _run(out: Path, models: tuple[Path, ...], seed: int = 0, entries: Any = None, **settings: Any) -> Run:
    base, *others = models
    run = run_of(base, base, out)
    run.stage, run.seed, run.models = "1-merge", seed, tuple(others)
    given = entries or [{} for _ in others]
    named = [{"model": {"path": str(other)}, **entry} for other, entry in zip(others, given, strict=True)]
    Merge.model_validate({**settings, "others": named}).apply(run)
    return run


def _merge(out: Path, models: tuple[Path, ...], **settings: Any) -> Tensors:
    return load_file(_run(out, models, **settings).out / "model.safetensors")


def _same(merged: Tensors, model: Path) -> bool:
    stored = load_file(model / "model.safetensors")
    return stored.keys() == merged.keys() and all(
        merged[name].dtype == tensor.dtype and merged[name].equal(tensor) for name, tensor in stored.items()
    )


def test_ends_are_the_models_themselves(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, b = models
    none = [{"weight": 0.0}]
    assert not _same(load_file(a / "model.safetensors"), base)
    assert _same(_merge(tmp_path / "1", (base, a), method="slerp", t=0.0), base)
    assert _same(_merge(tmp_path / "2", (base, a), method="slerp", t=1.0), a)
    assert _same(_merge(tmp_path / "3", (base, a), method="linear", weight=0.0), a)
    assert _same(_merge(tmp_path / "4", (base, a), method="linear", entries=none), base)
    assert _same(_merge(tmp_path / "5", (base, a), method="task_arithmetic", entries=none), base)
    assert _same(_merge(tmp_path / "6", (base, a, b), method="ties", scale=0.0), base)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_one_whole_difference_gives_the_other_model(
    method: str, models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """All but what float32 cannot hold of a difference, where one weight is far smaller than the other."""
    base, a, _ = models
    entries = [{"density": 1.0}] if method != "task_arithmetic" else None
    merged = _merge(tmp_path / "out", (base, a), method=method, entries=entries)
    for name, tensor in load_file(a / "model.safetensors").items():
        torch.testing.assert_close(merged[name].double(), tensor.double(), rtol=0, atol=1e-7, msg=name)


def test_dare_that_drops_nothing_is_task_arithmetic(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    weights = [{"weight": 0.7}, {"weight": 0.4}]
    added = _merge(tmp_path / "added", models, method="task_arithmetic", scale=0.5, entries=weights)
    whole = [{**entry, "density": 1.0} for entry in weights]
    dare = _merge(tmp_path / "dare", models, method="dare_linear", scale=0.5, entries=whole)
    assert all(tensor.equal(dare[name]) for name, tensor in added.items())
    base, a, b = (load_file(model / "model.safetensors") for model in models)
    for name, tensor in added.items():
        own = base[name].double()
        exact = own + 0.5 * (0.7 * (a[name].double() - own) + 0.4 * (b[name].double() - own))
        torch.testing.assert_close(tensor, exact.to(tensor.dtype), rtol=1e-2, atol=1e-6, msg=name)


def test_dare_follows_the_seed_not_the_files(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _merge(tmp_path / "1", models, method="dare_ties", seed=1)
    other = _merge(tmp_path / "2", models, method="dare_ties", seed=2)
    with monkeypatch.context() as patched:
        patched.setattr("optcore.restructure.merge.TensorWriter", partial(TensorWriter, part_bytes=2**18))
        run = _run(tmp_path / "3", models, method="dare_ties", seed=1)
    shards: Tensors = {}
    for file in run.out.glob("model-*.safetensors"):
        shards |= load_file(file)
    assert all(tensor.equal(shards[name]) for name, tensor in first.items())
    assert any(not tensor.equal(other[name]) for name, tensor in first.items())
    again = _merge(tmp_path / "4", (run.out, run.out), method="slerp", t=1.0)  # of sharded models
    assert all(tensor.equal(first[name]) for name, tensor in again.items())


def _change(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_models_that_do_not_fit_are_refused(
    models: tuple[Path, Path, Path], tiny_model: MakeModel, tmp_path: Path
) -> None:
    base, a, b = models
    with pytest.raises(RecipeError, match="model_type is") as refused:
        _run(tmp_path / "1", (base, a, tiny_model("Qwen3")))
    assert refused.value.field == "/chain/0/others/1/model"
    assert not list((tmp_path / "1").iterdir())
    _change(a, num_attention_heads=2)
    with pytest.raises(RecipeError, match=r"num_attention_heads is 4 in one and 2 in the other"):
        _run(tmp_path / "2", (base, a))
    tensors = load_file(b / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"only the chain's model has the tensors model\.norm\.weight"):
        _run(tmp_path / "3", (base, b))
    save_file({**tensors, "model.norm.weight": norm[:-1].clone()}, b / "model.safetensors")
    with pytest.raises(RecipeError, match=r"model\.norm\.weight is \(128,\) in one model and \(127,\)"):
        _run(tmp_path / "4", (base, b))


def test_another_tokenizer_is_refused(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, _ = models
    document = json.loads((a / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[names[0]], vocab[names[1]] = vocab[names[1]], vocab[names[0]]
    (a / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(VocabularyMismatch, match="2 of") as refused:
        _run(tmp_path / "out", (base, a))
    assert refused.value.field == "/chain/0/others/0/model"


def test_other_settings_are_said_and_bookkeeping_is_not(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, _ = models
    _change(a, max_position_embeddings=4096, transformers_version="0", use_cache=False)
    run = _run(tmp_path / "out", (base, a))
    said = " ".join(run.results["notices"])  # type: ignore[call-overload]
    assert "a has other settings in config.json (max_position_embeddings)" in said
    assert "merged with 1 other model (linear)" in said
    assert run.results["merge"]["models"] == 2  # type: ignore[index]
    assert json.loads((run.out / "config.json").read_text())["max_position_embeddings"] != 4096


def test_a_tied_head_that_one_model_stores_goes(tiny_model: MakeModel, tmp_path: Path) -> None:
    base = tiny_model("Qwen2")
    assert json.loads((base / "config.json").read_text())["tie_word_embeddings"] is True
    other = _perturbed(base, tmp_path / "other", 1)
    tensors = load_file(other / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, other / "model.safetensors")
    for number, pair in enumerate(((base, other), (other, base))):
        assert "lm_head.weight" not in _merge(tmp_path / f"out{number}", pair)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out1")
    _change(other, tie_word_embeddings=False)
    with pytest.raises(RecipeError, match="tie_word_embeddings is True in one and False"):
        _run(tmp_path / "refused", (base, other))


def test_values_that_are_no_numbers_are_refused(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, a, _ = models
    tensors = load_file(a / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, a / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight of the merged model"):
        _run(tmp_path / "out", (base, a))


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        ({"method": "slerp"}, 2, "exactly one"),
        ({"method": "linear", "t": 0.3}, 1, "does not look at `t`"),
        ({"method": "ties", "weight": 0.3}, 1, "does not look at `weight`"),
        ({"method": "slerp", "scale": 0.3}, 1, "does not look at `scale`"),
        ({"method": "linear", "weight": -1}, 1, "sum to zero"),
        ({"method": "linear"}, 0, "at least 1 item"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], count: int, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Merge.model_validate({**settings, "others": [{"model": {"id": "org/b"}}] * count})


def test_a_recipe_names_its_models_and_their_paths() -> None:
    merge = {"technique": "merge", "others": [{"model": {"id": "org/b"}}, {"model": {"path": "c"}}]}
    recipe = recipe_from({"model": {"id": "org/a"}, "chain": [merge], "target": {"format": "dense"}})
    check(recipe)
    assert list(recipe.chain[0].models) == ["others/0/model", "others/1/model"]
    seen: list[str] = []
    changed = with_paths(recipe, lambda path, pointer: (seen.append(pointer), f"/roots/{path}")[1])
    assert seen == ["/chain/0/others/1/model/path"]
    assert str(changed.chain[0].models["others/1/model"]) == "/roots/c"
    rotated = {"model": {"id": "org/a"}, "chain": [{"technique": "rotate"}, merge], "target": {"format": "dense"}}
    with pytest.raises(RecipeError, match="needs a model that is unrotated"):
        check(recipe_from(rotated))


def test_a_first_merge_is_checked_as_soon_as_its_models_are_here(stdlib_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(stdlib_model, other)
    _change(other, num_attention_heads=2)
    merge = {"technique": "merge", "others": [{"model": {"path": str(other)}}]}
    document = {
        "model": {"path": str(stdlib_model)},
        "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 64},
        "chain": [merge],
        "target": {"format": "dense"},
    }
    recipe = recipe_from(document)
    inputs = Inputs(calibration=recipe.calibration)
    task = StageTask(name="0-fetch", work=fetch_work(recipe), inputs=inputs, cache=str(tmp_path / "cache"))
    with pytest.raises(RecipeError, match="num_attention_heads is 4 in one and 2 in the other") as refused:
        perform(task, lambda event: None)
    assert refused.value.field == "/chain/0/others/0/model"
    later = recipe_from({**document, "chain": [{"technique": "prune", "depth": 1}, merge]})
    assert fetch_work(later).alike == ()  # two models of five layers may come of one with six
    assert fetch_work(recipe).alike == ("/chain/0/others/0/model",)


def _whole_run(folder: Path, number: int, base: Path, other: Path) -> list[AnyEvent]:
    merge = {
        "technique": "merge",
        "compare": False,
        "method": "slerp",
        "t": 1.0,
        "others": [{"model": {"path": str(other)}}],
    }
    document = {
        "model": {"path": str(base)},
        "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 64},
        "chain": [merge],
        "target": {"format": "dense"},
        "evaluate": [],
    }
    events: list[AnyEvent] = []
    optimize(recipe_from(document), folder / f"out{number}", folder / "work", events.append)
    return events


@pytest.mark.usefixtures("stages_here")
def test_a_whole_run_goes_by_the_other_models_bytes(stdlib_model: Path, tmp_path: Path) -> None:
    """The same recipe with other bytes at the same path is another stage."""
    other = _perturbed(stdlib_model, tmp_path / "other", 1)
    first = _whole_run(tmp_path, 1, stdlib_model, other)
    assert _same(load_file(tmp_path / "out1" / "model.safetensors"), other)
    assert any(isinstance(event, Notice) and "merged with 1 other model" in event.message for event in first)
    shutil.rmtree(other)
    _perturbed(stdlib_model, other, 2)
    changed = _whole_run(tmp_path, 2, stdlib_model, other)
    assert _same(load_file(tmp_path / "out2" / "model.safetensors"), other)
    stages = [_merged(events) for events in (first, changed)]
    assert [stage.cached for stage in stages] == [False, False]
    assert stages[0].key != stages[1].key


def _merged(events: list[AnyEvent]) -> StageFinished:
    return next(event for event in events if isinstance(event, StageFinished) and event.stage == "1-merge")
