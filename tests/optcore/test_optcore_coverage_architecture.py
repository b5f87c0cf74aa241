"""Which configurations are refused before a skeleton is built, and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_models import EXTRAS, MakeModel
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, XLMConfig, XLMWithLMHeadModel

from optcore.architecture import check_architecture
from optcore.errors import BadCheckpoint, UnknownArchitecture
from optcore.streaming.decoder import Decoder


@pytest.mark.parametrize("family", EXTRAS)
def test_every_family_passes(family: str, tiny_model: MakeModel) -> None:
    assert check_architecture(tiny_model(family)) is None


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("Llama", {"num_hidden_layers": 10**9}),
        ("Llama", {"decoder_layers": 2**24}),
        ("Llama", {"vision_config": {"depth": 2**24}}),
        ("Llama", {"num_labels": 2**24}),
        ("Llama", {"head_dim": 2**40}),
        ("Llama", {"max_position_embeddings": 2**40}),
        ("Mixtral", {"num_local_experts": 10**6}),
        ("GptOss", {"num_local_experts": 10**6}),
        ("Qwen3Moe", {"text_config": {"num_experts": 10**6}}),
    ],
)
def test_absurd_numbers_are_refused(family: str, change: dict[str, Any], tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _changed(tiny_model(family), tmp_path, change)
    with pytest.raises(BadCheckpoint, match="the most that these weights allow"):
        check_architecture(folder)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model_type": "no-such-model"}, UnknownArchitecture, "no-such-model"),
        ({"model_type": 5}, BadCheckpoint, "not a model's configuration"),
        ({"model_type": "t5"}, UnknownArchitecture, "t5"),
        ({"model_type": "bart", "is_encoder_decoder": True}, UnknownArchitecture, "encoder with a decoder"),
        ({"quantization_config": {}}, BadCheckpoint, "quantized already"),
    ],
)
def test_other_models_are_refused(
    change: dict[str, Any], error: type[Exception], said: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        check_architecture(_changed(tiny_model("Llama"), tmp_path, change))


def test_projections_of_another_kind_are_refused_instead_of_skipped(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=256)).save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match="no linear layers"):
        Decoder(tmp_path)


def test_layers_that_are_not_a_chain_are_refused_instead_of_streamed_wrongly(tmp_path: Path) -> None:
    config = XLMConfig(emb_dim=64, n_layers=2, n_heads=4, vocab_size=256, n_words=256)
    XLMWithLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitecture, match="not called one after the other"):
        Decoder(tmp_path).embed(torch.arange(8)[None] + 5)


def test_weights_that_are_not_finite_are_named(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = _changed(tiny_model("Llama"), tmp_path, {})
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    decoder = Decoder(folder)
    with pytest.raises(BadCheckpoint, match=r"layers\.1\.input_layernorm\.weight holds values"), decoder.layer(1):
        pass


def _changed(source: Path, target: Path, change: dict[str, Any]) -> Path:
    folder = shutil.copytree(source, target / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    return folder
