"""The streaming decoder against transformers' own forward, family by family."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.exporting import streamed_logits
from fixtures.tiny_models import ENCODERS, EXTRAS, MakeModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from optcore.errors import BadCheckpoint, UnknownArchitecture
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, linears, probe_state


@pytest.mark.parametrize("family", EXTRAS)
def test_logits_equal_transformers(family: str, tiny_model: MakeModel) -> None:
    folder = tiny_model(family)
    tokens_BT = torch.randint(0, 2048, (2, 40), generator=torch.Generator().manual_seed(1))
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    reference = auto.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(tokens_BT).logits
    torch.testing.assert_close(streamed_logits(Decoder(folder), tokens_BT), expected, rtol=1e-5, atol=2e-5)


def test_only_one_layer_is_in_memory(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"))
    with decoder.layer(0) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
        assert all(parameter.is_meta for parameter in decoder.layers[1].parameters())
    assert all(parameter.is_meta for parameter in decoder.layers.parameters())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("Llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("Phi3", [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]]),
    ],
)
def test_fused_groups_are_found_from_structure(family: str, expected: list[list[str]], tiny_model: MakeModel) -> None:
    assert [[path.rpartition(".")[2] for path in group] for group in _groups(tiny_model(family))] == expected


@pytest.mark.parametrize("family", EXTRAS)
def test_every_linear_is_in_one_group(family: str, tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model(family))
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            groups = fused_groups(decoder, index, layer, probe_state(decoder))
            assert sorted(path for group in groups for path in group) == sorted(linears(layer))
            for group in groups:
                assert len({layer.get_submodule(path).in_features for path in group}) == 1


def test_a_checkpoint_of_the_base_model_is_read(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _copy(tiny_model("Qwen2"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    renamed, whole = (streamed_logits(Decoder(path), torch.arange(12)[None]) for path in (folder, tiny_model("Qwen2")))
    assert torch.equal(renamed, whole)
    assert Decoder(folder).names.stored_module("model.layers.1.mlp.up_proj") == "layers.1.mlp.up_proj"


def test_every_expert_is_a_group_and_the_router_is_in_none(tiny_model: MakeModel) -> None:
    groups = _groups(tiny_model("Mixtral"))
    for expert in range(4):
        assert [f"mlp.experts.{expert}.gate_proj", f"mlp.experts.{expert}.up_proj"] in groups
        assert [f"mlp.experts.{expert}.down_proj"] in groups
    assert not any(path == "mlp.gate" for group in groups for path in group)


def test_expert_names_are_the_checkpoints_own(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Mixtral"))
    stored = decoder.names.stored_module("model.layers.1.mlp.experts.2.up_proj")
    assert stored == "model.layers.1.block_sparse_moe.experts.2.w3"


def test_a_missing_tensor_names_itself(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _copy(tiny_model("Llama"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        Decoder(folder)


def test_a_wrong_shape_names_both(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _copy(tiny_model("Llama"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    with pytest.raises(BadCheckpoint, match=r"\(256, 128\).*\(512, 128\)"):
        Decoder(folder)


def test_a_cut_file_is_a_bad_checkpoint(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _copy(tiny_model("Llama"), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BadCheckpoint, match="cannot read"):
        Decoder(folder)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnknownArchitecture, match="no-such-model"):
        Decoder(tmp_path)


def _groups(folder: Path) -> list[list[str]]:
    decoder = Decoder(folder)
    with decoder.layer(0) as layer:
        groups = fused_groups(decoder, 0, layer, probe_state(decoder))
        assert {path for group in groups for path in group} == set(linears(layer))
    return groups


def _copy(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target / "model")
