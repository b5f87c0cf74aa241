"""Rotated checkpoints: the same function in other weights, or a refusal that says why."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import ENCODERS, EXTRAS, MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from optcore.errors import UnknownArchitecture
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.streaming.writer import TensorWriter
from optcore.techniques.rotate import Rotate

REFUSED = {
    "Olmo2": "layer 0",
    "Gemma2": "layer 0",
    "Gemma3Text": "layer 0",
    "Glm4": "layer 0",
    "Phi": "no RMSNorm",
    "Olmo": "no RMSNorm",
    "GPTNeoX": "no RMSNorm",
    "Starcoder2": "no RMSNorm",
    "OPT": "more than the embeddings",
    "Bloom": "more than the embeddings",
    "Bert": "more than the embeddings",
    "Roberta": "more than the embeddings",
    "ModernBert": "more than the embeddings",
    "Cohere": "logits",
}
ROTATED = [family for family in EXTRAS if family not in REFUSED]


@pytest.mark.parametrize("family", ROTATED)
def test_logits_stay(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """Stored in float32, nothing but the order of sums is left between the two."""
    source = _trained(tiny_model(family), tmp_path / "source", torch.float32)
    run = _rotate(source, tmp_path / "out")
    before, after = _logits(source), _logits(run.out)
    difference = ((after - before).norm() / before.norm()).item()
    print(f"{family}: relative difference of logits {difference:.2e}, {run.results['rotation']}")
    assert difference < 1e-4
    assert run.results["rotation"]["residual_block"] == 128  # type: ignore[index]


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_rotated_says_why(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = _trained(tiny_model(family), tmp_path / "source", torch.bfloat16)
    with pytest.raises(UnknownArchitecture, match=f"cannot be rotated.*{REFUSED[family]}"):
        _rotate(source, tmp_path / "out")


@pytest.mark.parametrize("family", EXTRAS)
def test_values_alone_can_always_be_turned(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = _trained(tiny_model(family), tmp_path / "source", torch.float32)
    run = _rotate(source, tmp_path / "out", residual=False)
    before, after = _logits(source), _logits(run.out)
    assert ((after - before).norm() / before.norm()).item() < 1e-4
    assert run.results["rotation"]["residual_block"] == 1  # type: ignore[index]
    no_plain_heads = family == "Qwen3Next"  # its values are gated between v and o
    assert (32 in run.results["rotation"]["value_blocks"]) == (not no_plain_heads)  # type: ignore[index]


def test_the_trained_model_stays_the_same_in_bfloat16(stdlib_model: Path, tmp_path: Path) -> None:
    run = _rotate(stdlib_model, tmp_path / "out")
    before, after = _logits(stdlib_model).log_softmax(-1), _logits(run.out).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    print(f"stdlib-5m rotated: KL {kl:.2e}, {run.results['rotation']}")
    assert kl < 1e-3
    assert run.results["rotation"] == {"residual_block": 256, "value_blocks": [64]}


def test_outlier_channels_of_the_stream_are_gone(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = _trained(tiny_model("Llama"), tmp_path / "source", torch.float32)
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 7] *= 100
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    run = _rotate(source, tmp_path / "out")

    def spread(folder: Path) -> float:
        amax_K = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].abs().amax(0)
        return float(amax_K.amax() / amax_K.median())

    print(f"largest over median channel of the embeddings: {spread(source):.1f} -> {spread(run.out):.1f}")
    assert spread(source) > 50
    assert spread(run.out) < 2
    torch.testing.assert_close(_logits(run.out), _logits(source), rtol=1e-3, atol=1e-3)


def test_a_tied_head_becomes_its_own_only_where_it_must(tiny_model: MakeModel, tmp_path: Path) -> None:
    plain = _rotate(tiny_model("Qwen2"), tmp_path / "plain")
    assert "lm_head.weight" not in load_file(plain.out / "model.safetensors")
    assert json.loads((plain.out / "config.json").read_text())["tie_word_embeddings"] is True
    trained = _trained(tiny_model("Qwen2"), tmp_path / "source", torch.bfloat16)
    gained = _rotate(trained, tmp_path / "gained")
    assert "lm_head.weight" in load_file(gained.out / "model.safetensors")
    assert json.loads((gained.out / "config.json").read_text())["tie_word_embeddings"] is False
    assert json.loads((trained / "config.json").read_text())["tie_word_embeddings"] is True
    assert "separate now" in str(gained.results["notices"])


def test_signs_follow_the_seed_and_blocks_the_setting(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")

    def table(name: str, seed: int = 0, **settings: object) -> torch.Tensor:
        run = _rotate(source, tmp_path / name, seed, **settings)
        return load_file(run.out / "model.safetensors")["model.embed_tokens.weight"]

    first = table("a", 1)
    assert first.equal(table("b", 1))
    assert not first.equal(table("c", 2))
    assert table("d", 1, signs=False).equal(table("e", 2, signs=False))
    small = _rotate(source, tmp_path / "f", block=40)
    assert small.results["rotation"]["residual_block"] == 32  # type: ignore[index]


def test_shards_stay_small(tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optcore.streaming.rotated.TensorWriter", partial(TensorWriter, part_bytes=2**18))
    run = _rotate(tiny_model("Llama"), tmp_path / "out")
    assert len(list(run.out.glob("model-*.safetensors"))) > 3
    assert _logits(run.out).isfinite().all()


def test_tensors_that_no_module_takes_are_left_out(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Such as a further layer for speculative decoding, which reads the residual stream."""
    source = _trained(tiny_model("Llama"), tmp_path / "source", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(256, 128, dtype=torch.bfloat16)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    run = _rotate(source, tmp_path / "out")
    assert "model.layers.2.mlp.up_proj.weight" not in load_file(run.out / "model.safetensors")
    assert "left out" in str(run.results["notices"])


def test_a_recipe_rotates_before_it_quantizes() -> None:
    chain = [{"technique": "rotate", "block": 64}, {"technique": "ptq", "scheme": "int4"}]
    recipe = recipe_from({"model": {"id": "org/model"}, "chain": chain})
    check(recipe)
    assert recipe.chain[0].summary == "Hadamard rotation of residual stream and values"


def test_blocks_of_one_channel_are_no_rotation() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Rotate(block=1)


def _rotate(source: Path, out: Path, seed: int = 0, **settings: object) -> Run:
    run = run_of(source, source, out)
    run.seed = seed
    Rotate.model_validate(settings).apply(run)
    return run


def _trained(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy whose norms have gains of their own, as training leaves them, stored in `dtype`."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, tensor in tensors.items():
        if "norm" in name and tensor.ndim == 1:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        if tensor.dtype == torch.bfloat16:
            tensors[name] = tensor.to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _logits(folder: Path) -> torch.Tensor:
    tokens_BT = torch.randint(0, 2048, (2, 40), generator=torch.Generator().manual_seed(1))
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    is_encoder = any(architecture.startswith(family) for family in ENCODERS)
    auto = AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        return model(tokens_BT).logits
