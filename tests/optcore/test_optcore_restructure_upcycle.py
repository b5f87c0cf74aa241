"""Dense models as mixtures of experts: the same function, in the families that transformers has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel, make_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optcore.errors import RecipeError
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.streaming import writer
from optcore.targets import check_target
from optcore.techniques import Upcycle

TOKENS_BT = torch.arange(4, 28)[None]
BECOMES = {"Llama": "Mixtral", "Mistral": "Mixtral", "Qwen2": "Qwen2Moe", "Qwen3": "Qwen3Moe"}


@pytest.mark.parametrize("family", BECOMES)
def test_the_mixture_computes_what_the_dense_model_does(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    run = upcycled(tiny_model(family), tmp_path / "out", experts=3, top_k=2)
    mixture = loaded(run.out)
    assert type(mixture).__name__ == f"{BECOMES[family]}ForCausalLM"
    with torch.no_grad():
        found, expected = (model(TOKENS_BT, use_cache=False).logits for model in (mixture, loaded(run.checkpoint)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    record: Any = run.results["upcycle"]
    stored = tensors(run.out)
    assert record["parameters"] == sum(tensor.numel() for tensor in stored.values()) > record["parameters_before"]
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_only_the_copies_after_the_first_are_parted(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = upcycled(tiny_model("Llama"), tmp_path / "out", experts=3, jitter=0.1)
    dense, mixture = tensors(run.checkpoint), tensors(run.out)
    for ours, theirs in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        weight = dense[f"model.layers.1.mlp.{theirs}.weight"]
        first, second, third = (
            mixture[f"model.layers.1.block_sparse_moe.experts.{at}.{ours}.weight"] for at in range(3)
        )
        assert torch.equal(first, weight)
        assert not torch.equal(second, third)
        for copy in (second, third):
            moved = (copy.float() - weight.float()).std() / weight.float().std()
            assert moved == pytest.approx(0.1, rel=0.05)


def test_channels_drawn_anew_are_whole_channels_of_their_share(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = upcycled(tiny_model("Qwen3"), tmp_path / "out", experts=2, reinitialize=0.25)
    dense, mixture = tensors(run.checkpoint), tensors(run.out)
    changed = []
    for projection, dim in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
        before = dense[f"model.layers.0.mlp.{projection}.weight"].float()
        after = mixture[f"model.layers.0.mlp.experts.1.{projection}.weight"].float()
        changed.append((before != after).any(dim))
        assert after.std() == pytest.approx(before.std().item(), rel=0.05)
    assert all(torch.equal(one, changed[0]) for one in changed)
    assert changed[0].sum() == 64  # of 256


def test_routers_are_small_and_drawn_by_the_seed(tiny_model: MakeModel, tmp_path: Path) -> None:
    def routers(at: str, seed: int) -> torch.Tensor:
        run = upcycled(tiny_model("Llama"), tmp_path / at, seed=seed, experts=8)
        stored = tensors(run.out)
        return torch.stack([stored[f"model.layers.{index}.block_sparse_moe.gate.weight"] for index in range(2)]).float()

    first = routers("a", 0)
    assert torch.equal(first, routers("b", 0))
    assert not torch.equal(first, routers("c", 1))
    assert not torch.equal(first[0], first[1])
    assert first.std() == pytest.approx(0.02, rel=0.05)


def test_it_is_written_part_by_part(tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensors(upcycled(tiny_model("Llama"), tmp_path / "whole", experts=2, jitter=0.1).out)
    monkeypatch.setattr(writer.TensorWriter.__init__, "__defaults__", (2**17,))
    run = upcycled(tiny_model("Llama", max_shard_size="200KB"), tmp_path / "parts", experts=2, jitter=0.1)
    files = sorted(run.out.glob("model-*.safetensors"))
    assert len(files) > 4
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_it_says_what_it_costs_and_has_no_rival(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = upcycled(tiny_model("Qwen2"), tmp_path / "out", experts=2, top_k=1)
    (said,) = run.results["notices"]  # type: ignore[misc]
    assert "no better than the dense model until trained: each token passes through 2 feed-forward networks" in said
    assert Upcycle().rival is None


@pytest.mark.parametrize(
    ("family", "said"),
    [("Gemma2", "what a dense gemma2 does"), ("Mixtral", "a dense mixtral"), ("Bert", "a dense bert")],
)
def test_families_without_a_mixture_are_refused(family: str, said: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        upcycled(tiny_model(family), tmp_path / "out")
    assert "llama, mistral, qwen2, qwen3" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("family", "extras", "said"),
    [
        ("Llama", {"attention_bias": True}, "`attention_bias`, which mixtral does not know"),
        ("Llama", {"mlp_bias": True}, "`mlp_bias`"),
        ("Qwen3", {"use_sliding_window": True}, "`use_sliding_window`, which qwen3_moe"),
    ],
)
def test_what_the_mixture_does_not_know_is_refused(
    family: str, extras: dict[str, Any], said: str, stdlib_model: Path, tmp_path: Path
) -> None:
    source = make_model(family, {"num_hidden_layers": 1, **extras}, tmp_path / "source", stdlib_model)
    with pytest.raises(RecipeError, match=said):
        upcycled(source, tmp_path / "out")


def test_a_model_that_is_not_what_its_configuration_says_is_not_passed_on(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof itself: a mixture whose gates do not sum to 1."""
    from optcore.restructure import families

    settings = families.Family.settings
    monkeypatch.setattr(families.Family, "settings", lambda *given: settings(*given) | {"norm_topk_prob": False})
    with pytest.raises(RecipeError, match="computes something else"):
        upcycled(tiny_model("Qwen3"), tmp_path / "out")


@pytest.mark.parametrize("settings", [{"experts": 1}, {"experts": 2, "top_k": 3}, {"jitter": -0.1}])
def test_what_is_no_recipe(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Upcycle.model_validate(settings)


def upcycled(source: Path, out: Path, seed: int = 0, **settings: Any) -> Run:
    run = run_of(source, source, out)
    run.seed = seed
    Upcycle.model_validate(settings).apply(run)
    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


def test_what_follows_must_suit_a_mixture() -> None:
    quantized = {"technique": "ptq", "scheme": "int4"}
    target = {"format": "gptq", "engine": "onnxruntime-genai"}
    recipe = {"model": {"path": "m"}, "chain": [quantized], "target": target}
    check_target(recipe_from(recipe), "dense")
    with pytest.raises(RecipeError, match="ONNX Runtime GenAI"):
        check_target(recipe_from(recipe | {"chain": [{"technique": "upcycle"}, quantized]}), "dense")
