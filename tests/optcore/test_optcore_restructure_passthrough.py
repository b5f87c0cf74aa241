"""Stacked layers: what the checkpoint holds, against transformers' own model and the files they came from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.errors import RecipeError
from optcore.run import Run
from optcore.techniques.merge import Merge


def _run(source: Path, out: Path, slices: list[dict[str, Any]], *others: Path) -> Run:
    run = run_of(source, source, out)
    run.stage, run.models = "1-merge", others
    _merge(slices, len(others)).apply(run)
    return run


def _merge(slices: list[dict[str, Any]], others: int = 0, **more: Any) -> Merge:
    named = [{"model": {"path": f"other{number}"}} for number in range(others)]
    return Merge.model_validate({"method": "passthrough", "slices": slices, "others": named, **more})


def _negated(source: Path, folder: Path) -> Path:
    """A copy whose every tensor is another."""
    shutil.copytree(source, folder)
    tensors = {name: -tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_whole_model_is_itself(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out", [{"layers": [0, 2]}, {"layers": [2, 6]}])
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run.out / "config.json").read_text()) == json.loads((stdlib_model / "config.json").read_text())


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2", "Mixtral", "Phi3"])
def test_a_model_stacked_on_itself_computes_its_layers_again(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """Against transformers' own model with its list of layers lengthened."""
    source = tiny_model(family)
    depth = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    order = [*range(depth), *range(depth)]
    run = _run(source, tmp_path / "out", [{"layers": [0, depth]}, {"layers": [0, depth]}])
    assert run.results["merge"] == {"method": "passthrough", "models": 1, "layers": 2 * depth}
    model, taller = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (source, run.out))
    assert taller.config.num_hidden_layers == 2 * depth
    assert len(getattr(taller.config, "layer_types", None) or order) == 2 * depth
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in order)
    model.config.num_hidden_layers = 2 * depth
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[index] for index in order]
    tokens_BT = torch.arange(4, 20)[None]
    expected, found = (each(tokens_BT, use_cache=False).logits for each in (model, taller))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_come_from_the_models_that_slices_name(stdlib_model: Path, tmp_path: Path) -> None:
    other = _negated(stdlib_model, tmp_path / "other")
    slices = [{"layers": [0, 2]}, {"model": 1, "layers": [1, 4]}, {"layers": [5, 6]}]
    run = _run(stdlib_model, tmp_path / "out", slices, other)
    own, negated, made = (load_file(each / "model.safetensors") for each in (stdlib_model, other, run.out))
    sources = [(own, 0), (own, 1), (negated, 1), (negated, 2), (negated, 3), (own, 5)]
    inside = 0
    for name, tensor in made.items():
        tensors, index = own, name
        if name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            tensors, taken = sources[int(number)]
            index, inside = f"model.layers.{taken}.{rest}", inside + 1
        assert torch.equal(tensor, tensors[index]), name
    assert inside == sum(name.startswith("model.layers.") for name in own)


def test_the_rival_is_the_same_layers_of_the_chains_own_model() -> None:
    assert _merge([{"layers": [0, 4]}, {"layers": [2, 6]}]).rival is None
    rival = _merge([{"layers": [0, 4]}, {"model": 1, "layers": [2, 6]}], others=1).rival
    assert rival is not None
    assert rival == _merge([{"layers": [0, 4]}, {"layers": [2, 6]}], compare=False)
    assert rival.summary == "8 layers stacked from 2 slices"


def test_layers_that_are_not_there_are_refused(stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ends before layer 7, and the model has 6") as caught:
        _run(stdlib_model, tmp_path / "out", [{"layers": [0, 6]}, {"layers": [3, 7]}])
    assert caught.value.field == "/chain/0/slices/1/layers"
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_layer_that_knows_its_number_is_not_moved(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="depends on their numbers"):
        _run(tiny_model("ModernBert"), tmp_path / "out", [{"layers": [1, 2]}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "at least one slice"),
        ({"slices": [{"layers": [2, 2]}]}, "are none"),
        ({"slices": [{"model": 1, "layers": [0, 2]}]}, "of model 1, and `others` names 0"),
        ({"slices": [{"layers": [0, 2]}], "others": [{"model": {"id": "a/b"}}]}, "no slice is of model 1"),
        ({"slices": [{"layers": [0, 2]}], "t": 0.3}, "does not look at `t`"),
        ({"slices": [{"layers": [0, 2]}], "sweep": [0.5]}, "does not look at `sweep`"),
        ({"method": "linear", "slices": [{"layers": [0, 2]}]}, "does not look at `slices`"),
        ({"method": "ties"}, "at least 1 item"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Merge.model_validate({"method": "passthrough", **settings})
