"""Sparse checkpoints: exact counts under the checkpoint's own names, and what cannot be done said before any work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.exporting import export, run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.errors import RecipeError
from optcore.export.dense import Dense
from optcore.references import Calibration
from optcore.run import Run
from optcore.sparsity import Sparsity, load_sparsity
from optcore.streaming.decoder import Decoder
from optcore.techniques import Sparsify

METHODS = ("magnitude", "random", "wanda", "ria", "sparsegpt", "alps")
CALIBRATION = Calibration(dataset="python-stdlib", samples=8, sequence_length=64)


def _sparsify(source: Path, out: Path, calibration: Calibration = CALIBRATION, **settings: object) -> Run:
    run = run_of(source, source, out, calibration=calibration)
    Sparsify.model_validate(settings).apply(run)
    return run


def _described(folder: Path) -> Sparsity:
    found = load_sparsity(folder)
    assert found
    return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed_at_ratio_zero(method: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Qwen2")
    run = _sparsify(source, tmp_path / "out", method=method, ratio=0)
    before, after = _tensors(source), _tensors(run.out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.view(torch.uint8).equal(after[name].view(torch.uint8))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["2:4", "3:8"])
def test_every_group_holds_its_pattern(method: str, pattern: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    n, m = map(int, pattern.split(":"))
    run = _sparsify(tiny_model("Qwen2"), tmp_path / "out", method=method, pattern=pattern)
    found, tensors = _described(run.out), _tensors(run.out)
    assert len(found.tensors) == 2 * 7
    for name, described in found.tensors.items():
        nonzero = tensors[name].view(-1, m).count_nonzero(1)
        assert nonzero.amax() == n
        assert (nonzero == n).float().mean() > 0.99  # a weight that stays may be zero in the model's own type
        assert described.pattern == pattern
        assert described.nonzero == nonzero.sum()
        assert described.total == tensors[name].numel()
    assert found.share == pytest.approx(1 - n / m, abs=1e-3)
    assert ("cuSPARSELt" in found.accelerated_by) == (pattern == "2:4")


@pytest.mark.parametrize("method", METHODS)
def test_counts_of_a_ratio(method: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("OPT")
    run = _sparsify(source, tmp_path / "out", method=method, ratio=0.6)
    before, after, found = _tensors(source), _tensors(run.out), _described(run.out)
    for name in before.keys() - found.tensors.keys():
        assert before[name].equal(after[name])
    for name in found.tensors:
        keeps = after[name].count_nonzero(1)
        if method in ("wanda", "ria"):
            assert (keeps - (after[name].shape[1] * 0.4)).abs().amax() <= 1
        assert keeps.sum() == pytest.approx(0.4 * after[name].numel(), rel=5e-3)
        if method in ("magnitude", "random", "wanda", "ria"):
            assert after[name].where(after[name] != 0, before[name]).equal(before[name])
    said = run.results["sparsity"]
    assert isinstance(said, dict)
    assert said["share"] == pytest.approx(0.6, abs=2e-3)
    assert "nothing on GPUs" in str(run.results["notices"])
    assert "60" in str(run.results["notices"])
    _check_logits(run.out)


def _check_logits(folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model(torch.arange(10)[None]).logits.isfinite().all()


def test_later_layers_are_measured_on_sparse_ones(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Wanda by hand in the second layer, on what transformers' own model with a sparse first layer gives it."""
    source = tiny_model("Llama")
    run = _sparsify(source, tmp_path / "out", method="wanda", ratio=0.5)
    sparse, dense = _tensors(run.out), _tensors(source)
    mixed = {name: sparse[name] if ".layers.0." in name else tensor for name, tensor in dense.items()}
    folder = tmp_path / "mixed"
    shutil.copytree(source, folder)
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    from optcore.calibration.text import Texts

    name = "model.layers.1.self_attn.q_proj"
    for model_folder, is_same in ((folder, True), (source, False)):
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        given: list[torch.Tensor] = []
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        with torch.no_grad():
            model(Texts(source, CALIBRATION, ()).calibration_windows(512))
        norm_K = given[0].flatten(0, 1).double().square().sum(0).sqrt()
        scores_NK = dense[f"{name}.weight"].double().abs() * norm_K
        keep_NK = scores_NK >= scores_NK.topk(64, 1).values[:, -1:]
        differing = (keep_NK != (sparse[f"{name}.weight"] != 0)).sum().item()
        print(f"{model_folder.name}: {differing} of {keep_NK.numel()} places differ")
        assert (differing <= 8) == is_same


def test_owl_gives_layers_ratios(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _sparsify(tiny_model("Llama"), tmp_path / "out", method="wanda", ratio=0.5, owl=True)
    tensors = _tensors(run.out)
    ratios = run.results["layer_ratios"]
    assert isinstance(ratios, list)
    assert ratios[0] != ratios[1]
    for index, ratio in enumerate(ratios):
        weight = tensors[f"model.layers.{index}.mlp.up_proj.weight"]
        assert (weight == 0).float().mean() == pytest.approx(ratio, abs=0.01)
    assert _described(run.out).share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_experts_with_few_tokens_go_by_magnitude(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """8 tokens, 4 experts: no expert sees as many as a quarter of its inputs. In GptOss they are one tensor."""
    few = Calibration(dataset="python-stdlib", samples=1, sequence_length=8)
    run = _sparsify(tiny_model(family), tmp_path / "out", few, method="sparsegpt", pattern="2:4")
    assert "by magnitude" in str(run.results["notices"])
    assert "calibration tokens" in str(run.results["notices"])
    decoder = Decoder(run.out)
    with decoder.layer(0) as layer:
        experts = [p for name, p in layer.named_parameters() if "experts." in name and name.endswith("proj.weight")]
        assert len(experts) == 4 * 3
        for weight in experts:
            assert weight.reshape(-1, 4).count_nonzero(1).amax() == 2
        router = next(p for name, p in layer.named_parameters() if "router.weight" in name or "gate.weight" in name)
        assert router.all()


def test_ignored_layers_stay(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    run = _sparsify(source, tmp_path / "out", method="magnitude", ignore=["re:.*down_proj"])
    before, after = _tensors(source), _tensors(run.out)
    name = "model.layers.0.mlp.down_proj.weight"
    assert before[name].equal(after[name])
    assert name not in _described(run.out).tensors
    for ignore in ("re:nothing", "re:.*"):
        with pytest.raises(RecipeError, match=r"matches no|no linear layer is left"):
            _sparsify(source, tmp_path / "other", method="magnitude", ignore=[ignore])


def test_inputs_that_groups_do_not_divide_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="128 inputs, which groups of 12 do not divide") as caught:
        _sparsify(tiny_model("Llama"), tmp_path / "out", pattern="5:12")
    assert caught.value.field == "/chain"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 1},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"pattern": "4:2"},
        {"pattern": "0:4"},
        {"pattern": "4:4"},
        {"pattern": "2:65"},
        {"pattern": "x:y"},
        {"pattern": "2:4:8"},
        {"pattern": "2:4", "ratio": 0.5},
        {"pattern": "2:4", "owl": True},
        {"ratio": 0.05, "owl": True},
        {"method": "best"},
        {"damping": 0},
        {"ignore": ["re:("]},
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sparsify.model_validate(settings)


def test_settings_survive_being_written() -> None:
    for settings in ({}, {"pattern": "2:4"}, {"ratio": 0.6, "owl": True}):
        technique = Sparsify.model_validate(settings)
        assert Sparsify.model_validate_json(technique.model_dump_json()) == technique
    assert Sparsify().share == 0.5
    assert Sparsify(pattern="3:8").share == 0.625


def test_a_dense_target_carries_the_description(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _sparsify(tiny_model("Llama"), tmp_path / "out", method="magnitude")
    export(Dense(), run.out, tmp_path / "dense", tiny_model("Llama"))
    assert _described(tmp_path / "dense") == _described(run.out)
    assert json.loads((tmp_path / "dense" / "sparsity.json").read_text())["version"] == 1
