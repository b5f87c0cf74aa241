"""Weights from small tables: how many values are left, what they are near to, and what cannot be asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optcore.calibration.statistics import Observer
from optcore.errors import RecipeError
from optcore.export import Compact
from optcore.export.compact_decoder import CompactCheckpoint
from optcore.palettized import load_palettized
from optcore.run import Run
from optcore.streaming.decoder import Decoder
from optcore.techniques import Palettize

LINEAR = "model.layers.2.mlp.down_proj"


def made(source: Path, out: Path, **settings: Any) -> tuple[Run, dict[str, torch.Tensor]]:
    run = run_of(source, source, out)
    Palettize.model_validate(settings).apply(run)
    return run, load_file(out / "model.safetensors")


def test_a_matrix_has_as_many_values_as_indices_can_name(stdlib_model: Path, tmp_path: Path) -> None:
    _, tensors = made(stdlib_model, tmp_path / "out", bits=3, ignore=["re:.*layers.[1-4]"])
    before = load_file(stdlib_model / "model.safetensors")
    assert tensors.keys() == before.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == before[name].dtype
        if name.endswith("_proj.weight") and ("layers.0." in name or "layers.5." in name):
            assert len(tensor.unique()) == 8, name
        else:
            assert torch.equal(tensor, before[name]), name
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_channel_groups_have_tables_of_their_own(stdlib_model: Path, tmp_path: Path) -> None:
    settings = {
        "bits": 2,
        "group": 48,
        "sensitivity": "none",
        "ignore": ["re:.*layers.([0-1]|[3-5])"],
        "embeddings": True,
    }
    _, tensors = made(stdlib_model, tmp_path / "out", **settings)
    weight = tensors[f"{LINEAR}.weight"]  # 256 outputs: five groups, and 16 that are left
    assert [len(group.unique()) for group in weight.split(48)] == [4] * 6
    assert len(weight.unique()) > 4
    assert len(tensors["model.embed_tokens.weight"][:48].unique()) == 4
    assert len(tensors["model.layers.0.self_attn.q_proj.weight"].unique()) > 1000
    document = load_palettized(tmp_path / "out")
    assert document is not None
    assert document.sensitivity == "none"
    assert document.tensors[f"{LINEAR}.weight"].rows == 48


def test_few_values_are_kept_exactly(stdlib_model: Path, tmp_path: Path) -> None:
    made(stdlib_model, tmp_path / "first", bits=4, sensitivity="none", ignore=["re:.*layers.[1-5]"])
    _, again = made(tmp_path / "first", tmp_path / "again", bits=4, sensitivity="none", ignore=["re:.*layers.[1-5]"])
    first = load_file(tmp_path / "first" / "model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_mean_squares_are_the_diagonal_of_the_gram_matrix(stdlib_model: Path) -> None:
    decoder = Decoder(stdlib_model)
    with torch.no_grad(), decoder.layer(0) as layer:
        observer = Observer(layer, [["mlp.up_proj"], ["self_attn.o_proj"]], gram=True, squares=True)
        for text in (torch.arange(90, 130), torch.arange(400, 420)):
            with observer.measuring():
                decoder.forward(0, layer, decoder.embed(text[None]))
        for found in observer.finished().values():
            assert found.gram_KK is not None
            assert found.squares_K is not None
            torch.testing.assert_close(found.squares_K, found.gram_KK.diagonal())


def test_weighting_lowers_the_error_of_the_first_outputs(stdlib_model: Path, tmp_path: Path) -> None:
    """Of the first layer's q_proj, on inputs that have not been changed yet: sum over k of E[x_k^2] dW_k^2."""
    errors = {}
    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32).requires_grad_(False)
    seen: list[torch.Tensor] = []
    linear = model.model.layers[0].self_attn.q_proj
    linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(torch.arange(200, 456)[None])
    for sensitivity in ("inputs", "none"):
        _, tensors = made(
            stdlib_model, tmp_path / sensitivity, bits=2, sensitivity=sensitivity, ignore=["re:.*layers.[1-5]"]
        )
        lost = tensors["model.layers.0.self_attn.q_proj.weight"].float() - linear.weight
        errors[sensitivity] = float((lost.square() * seen[0].square().flatten(0, 1).mean(0)).sum())
    assert errors["inputs"] < errors["none"]


@pytest.mark.parametrize("family", ["GptOss", "Bert"])
def test_other_families_come_back_from_their_tables(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model(family)
    made(source, tmp_path / "out", bits=3, embeddings=True)
    Compact().write(run_of(source, tmp_path / "out", tmp_path / "compact"))  # compares every bit
    kinds = {form.form for form in CompactCheckpoint(tmp_path / "compact")._forms.values()}
    assert "palette" in kinds


def test_the_same_recipe_gives_the_same_bytes(stdlib_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(stdlib_model, tmp_path / name, bits=2, ignore=["re:.*layers.[1-5]"])
    for file in ("model.safetensors", "palette.safetensors", "palette.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}


@pytest.mark.parametrize(
    ("ignore", "message"),
    [(["model.layers.9.mlp"], "matches no linear layer"), (["re:.*"], "no linear layer is left")],
)
def test_nothing_to_do_is_refused(ignore: list[str], message: str, stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        made(stdlib_model, tmp_path / "out", ignore=ignore)
    assert caught.value.field == "/chain"
