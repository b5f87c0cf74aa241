"""Narrower models: what is ranked how, and a checkpoint that is the old model with what went masked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import EXTRAS, MakeModel, make_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optcore.calibration.text import Texts
from optcore.errors import RecipeError
from optcore.references import Calibration
from optcore.restructure.activity import Measured, measure
from optcore.restructure.choice import best
from optcore.restructure.width_plan import planned
from optcore.run import Run
from optcore.streaming import hidden
from optcore.streaming.decoder import Decoder
from optcore.techniques import Prune

TEXT = Calibration(dataset="python-stdlib", samples=6, sequence_length=32)
TOKENS_BT = torch.arange(4, 36).reshape(2, 16)
FFN, HEADS, HIDDEN = {"ffn": {"ratio": 0.5}}, {"heads": {"size": 2}}, {"hidden": {"ratio": 0.25}}
ALL = {**FFN, **HEADS, **HIDDEN}
RANDOM = {"order": "random", "rescale": False}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", FFN),
        ("Llama", HEADS),
        ("Llama", HIDDEN),
        ("Llama", ALL),
        ("Qwen2", ALL),  # biases, tied embeddings
        ("Qwen3", ALL),  # norms of queries and keys
        ("Phi3", ALL),  # queries, keys and values in one matrix; gate and up in one
        ("Mixtral", ALL),
        ("Qwen3Moe", ALL),
        ("GptOss", {**FFN, **HEADS}),  # experts in one transposed, interleaved tensor; sinks
    ],
)
def test_what_is_written_is_the_model_with_the_rest_masked(
    family: str, settings: dict[str, Any], tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    run = _pruned(source, tmp_path, {**settings, **RANDOM})
    model, narrower = _loaded(source), _loaded(run.out)
    _mask(model, run.results["width"]["kept"])  # type: ignore[index]
    with torch.no_grad():
        expected, found = model(TOKENS_BT).logits, narrower(TOKENS_BT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    config = json.loads((run.out / "config.json").read_text())
    for key, (before, after) in run.results["width"]["sizes"].items():  # type: ignore[index]
        assert (config[key], json.loads((source / "config.json").read_text())[key]) == (after, before)
        assert after < before


def test_depth_and_width_in_one_entry(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _pruned(tiny_model("Llama"), tmp_path, {"width": 0.25, "depth": 1, "ends": True})
    config = json.loads((run.out / "config.json").read_text())
    found = [config[key] for key in ("num_hidden_layers", "intermediate_size", "hidden_size", "num_attention_heads")]
    assert found == [1, 192, 96, 4]
    assert config["head_dim"] == 32
    assert {"depth", "width"} <= run.results.keys()
    assert _loaded(run.out)(TOKENS_BT).logits.isfinite().all()


@pytest.mark.parametrize("settings", [{"width": 0}, {"ffn": {"size": 768}, "heads": {"ratio": 0}}])
def test_nothing_taken_away_is_the_same_file(settings: dict[str, Any], stdlib_model: Path, tmp_path: Path) -> None:
    run = _pruned(stdlib_model, tmp_path, settings)
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (stdlib_model, run.out)]
    assert configs[0] == configs[1]


def test_scores_are_those_of_the_paper_however_windows_are_batched(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _measured(stdlib_model, tmp_path / "one", ALL)
    monkeypatch.setattr(hidden, "BATCH_tokens", 64)
    split = _measured(stdlib_model, tmp_path / "two", ALL)

    model = _loaded(stdlib_model)
    given, gave = _recorded(model)
    model(Texts(stdlib_model, TEXT, ()).calibration_windows(10**6))
    for path, activity in found.inputs.items():
        x_STK = given[path].double()
        is_heads = path.endswith("o_proj")
        size_STP = x_STK.unflatten(-1, (4, 64)).norm(dim=-1) if is_heads else x_STK.abs()
        expected_P = size_STP.mean(1).square().sum(0).sqrt()
        parts, channels = len(expected_P), x_STK.shape[-1]
        torch.testing.assert_close(activity.score_P(parts), expected_P, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(activity.mean_K(channels), x_STK.mean((0, 1)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(split.inputs[path].score_P(parts), activity.score_P(parts), rtol=1e-5, atol=1e-7)
    assert len(found.inputs) == 12
    assert found.outputs.keys() == found.energies.keys() == {path for path in gave if "norm" in path}
    kept = torch.arange(0, 256, 3)
    for path, activity in found.outputs.items():
        expected_H = gave[path].double().abs().mean(1).square().sum(0).sqrt()
        torch.testing.assert_close(activity.score_P(256), expected_H, rtol=1e-5, atol=1e-7)
        x_STH = given[path].double()
        gain = (x_STH[..., kept].square().mean() / x_STH.square().mean()).sqrt().item()
        assert found.energies[path].narrower(kept) == pytest.approx(gain, rel=1e-5)
        assert split.energies[path].narrower(kept) == pytest.approx(gain, rel=1e-5)


def test_an_expert_counts_the_tokens_that_reach_it(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Mixtral")
    found = _measured(source, tmp_path, FFN)
    model = _loaded(source)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda _, args, kwargs: seen.append(_routed(args, kwargs)), with_kwargs=True)
    model(Texts(source, TEXT, ()).calibration_windows(10**6))
    ((x_TH, index_Tk),) = seen
    for number in range(4):
        gate_TF, up_TF = (x_TH @ experts.gate_up_proj[number].T).chunk(2, -1)
        act_TF = (torch.nn.functional.silu(gate_TF) * up_TF).double() * (index_Tk == number).any(-1)[:, None]
        expected_F = act_TF.unflatten(0, (6, 32)).abs().mean(1).square().sum(0).sqrt()
        activity = found.inputs[f"model.layers.1.mlp.experts.{number}.down_proj"]
        torch.testing.assert_close(activity.score_P(256), expected_F, rtol=1e-5, atol=1e-8)


def test_the_best_of_each_group_stay() -> None:
    scores_P = torch.tensor([5.0, 1.0, 4.0, 9.0, 8.0, 7.0])
    assert best(scores_P, 4, 2).tolist() == [0, 2, 3, 4]
    assert best(scores_P, 3, 1).tolist() == [3, 4, 5]
    assert best(torch.ones(4), 2, 1).tolist() == [0, 1]


def test_gains_make_up_for_the_fewer_channels(stdlib_model: Path, tmp_path: Path) -> None:
    run = _pruned(stdlib_model, tmp_path, HIDDEN)
    width: Any = run.results["width"]
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    kept = torch.tensor(width["kept"]["hidden"])
    assert len(width["gains"]) == 13
    for path, gain in width["gains"].items():
        weight = before[f"{path}.weight"]
        expected = (weight.double() * gain).to(weight.dtype)[kept]
        assert torch.equal(after[f"{path}.weight"], expected)
        assert 0.5 < gain < 2
        assert gain != 1


def test_biases_take_what_the_removed_channels_gave_in_the_mean(stdlib_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_model("Llama", EXTRAS["Llama"] | {"mlp_bias": True, "attention_bias": True}, source, stdlib_model)
    run = _pruned(source, tmp_path, {**FFN, **HEADS, "compensate": True})
    model = _loaded(source)
    given, _ = _recorded(model)
    model(Texts(source, TEXT, ()).calibration_windows(10**6))
    after = load_file(run.out / "model.safetensors")
    for path, kept in run.results["width"]["kept"].items():  # type: ignore[index]
        linear = model.get_submodule(path)
        mean_K = given[path].double().mean((0, 1))
        mean_K.view(4 if path.endswith("o_proj") else 256, -1)[kept] = 0
        expected_N = linear.bias.double() + linear.weight.double() @ mean_K
        torch.testing.assert_close(after[f"{path}.bias"].double(), expected_N, rtol=8e-3, atol=1e-5)  # bfloat16
        assert (expected_N - linear.bias).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("Llama", {"heads": {"ratio": 0.9}}, "leaves a group empty"),
        ("Llama", {"heads": {"size": 3}}, "groups lose equally many"),
        ("Llama", {"ffn": {"size": 257}}, "there are 256"),
        ("Llama", {"hidden": {"size": 98}}, "not a multiple of the number of attention heads"),
        ("Llama", {**FFN, "compensate": True}, "has none"),
        ("Bert", HEADS, "scaling follows from num_attention_heads"),
        ("Lfm2", HIDDEN, "follows the hidden size in another way"),
        ("Starcoder2", HIDDEN, "no RMS norm"),
        ("Gemma2", HIDDEN, r"embed_scale follows from hidden_size"),
        ("Olmo2", HEADS, "q_norm.weight follows in a way"),
        ("Bloom", FFN, "its configuration cannot say it"),
        ("DeepseekV3", {"ffn": {"size": 64}}, "several sizes"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_any_work(
    family: str, settings: dict[str, Any], said: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    run = run_of(tiny_model(family), tiny_model(family), tmp_path / "out", calibration=TEXT)
    with pytest.raises(RecipeError, match=said) as caught:
        Prune.model_validate(settings | {"depth": 1, "ends": True}).apply(run)
    assert caught.value.remedy
    assert not list(run.out.iterdir())
    assert not (run.scratch / "pruned-1").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ffn": {}},
        {"ffn": {"ratio": 0.5, "size": 8}},
        {"ffn": {"ratio": 1}},
        {"width": 0.2, "hidden": {"ratio": 0.1}},
        {"depth": 1, "compensate": True},
    ],
)
def test_settings_that_contradict_each_other_are_no_recipe(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prune.model_validate(settings)


def test_the_summary_and_the_rival_name_every_axis() -> None:
    technique = Prune.model_validate({"depth": 1, "width": 0.25, "heads": {"size": 2}})
    assert technique.summary == (
        "1 layer of least influence left out; FFN channels cut by 25%, hidden channels cut by 25%, query heads cut to 2"
    )
    assert technique.rival is not None
    assert technique.rival.summary.endswith("query heads cut to 2 at random")
    assert technique.rival.cuts == technique.cuts


def _pruned(source: Path, folder: Path, settings: dict[str, Any]) -> Run:
    run = run_of(source, source, folder / "out", calibration=TEXT)
    Prune.model_validate(settings).apply(run)
    return run


def _measured(source: Path, folder: Path, settings: dict[str, Any]) -> Measured:
    run = run_of(source, source, folder / "out", calibration=TEXT)
    decoder = Decoder(source)
    return measure(run, decoder, planned(decoder, Prune.model_validate(settings), run.scratch))


def _loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _routed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    x_TH, index_Tk, *_ = [*args, *kwargs.values()]
    return x_TH, index_Tk


def _recorded(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What every linear and norm is given and gives, once the model has run."""
    given: dict[str, torch.Tensor] = {}
    gave: dict[str, torch.Tensor] = {}

    def hook(path: str) -> Callable[..., None]:
        def record(_: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
            given[path], gave[path] = args[0], out

        return record

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or "norm" in path:
            module.register_forward_hook(hook(path))
    return given, gave


def _mask(model: Any, kept: dict[str, list[int]]) -> None:
    """Zero the inputs of readers, and the residual stream wherever it is written; norms look at what is left."""
    heads = model.config.num_attention_heads
    for path, parts in kept.items():
        if ".experts." in path:
            container, _, number = path.removesuffix(".down_proj").rpartition(".")
            experts = model.get_submodule(container)
            down = experts.down_proj.data[int(number)]  # [H, F], or transposed
            inner = down if getattr(experts, "is_transposed", False) else down.T
            inner.mul_(_ones_at(parts, len(inner))[:, None])
        elif path != "hidden":
            linear = model.get_submodule(path)
            count = heads if path.endswith("o_proj") else linear.in_features
            mask_K = _ones_at(parts, count).repeat_interleave(linear.in_features // count)
            linear.register_forward_pre_hook(lambda _, args, mask_K=mask_K: (args[0] * mask_K,))
    if "hidden" in kept:
        _mask_stream(model, torch.tensor(kept["hidden"]))


def _mask_stream(model: Any, kept_H: torch.Tensor) -> None:
    size = model.config.hidden_size
    mask_H = _ones_at(kept_H.tolist(), size)

    def norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def narrower(x: torch.Tensor) -> torch.Tensor:
            mean = x[..., kept_H].square().mean(-1, keepdim=True)
            return x * torch.rsqrt(mean + module.variance_epsilon) * module.weight * mask_H

        return narrower

    for path, module in model.named_modules():
        if path.endswith(("embed_tokens", "o_proj", ".mlp")):
            module.register_forward_hook(lambda _, __, out: out * mask_H)
        elif "norm" in path and module.weight.shape == (size,):
            module.forward = norm(module)


def _ones_at(places: list[int], size: int) -> torch.Tensor:
    return torch.zeros(size).index_fill(0, torch.tensor(places), 1.0)
