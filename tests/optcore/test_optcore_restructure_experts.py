"""Experts left out: which ones, and a checkpoint that is the old model which never chooses them."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import EXTRAS, MakeModel, make_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.calibration.text import Texts
from optcore.errors import RecipeError
from optcore.references import Calibration
from optcore.restructure.experts import most
from optcore.run import Run
from optcore.streaming import hidden
from optcore.techniques import Prune

TEXT = Calibration(dataset="python-stdlib", samples=6, sequence_length=32)
TOKENS_BT = torch.arange(4, 28)[None]
FAMILIES = ("Mixtral", "Qwen2Moe", "GptOss", "GraniteMoe", "NemotronH", "DeepseekV3")
ROUTERS = {"DeepseekV3": "mlp.gate", "Qwen3Moe": "mlp.gate", "Mixtral": "block_sparse_moe.gate", "GptOss": "mlp.router"}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Path:
    """Eight experts in two groups, of which one is chosen."""
    extras = EXTRAS["DeepseekV3"] | {"n_routed_experts": 8}
    return make_model("DeepseekV3", extras, tmp_path_factory.mktemp("grouped"), stdlib_model)


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel, grouped: Path) -> Callable[[str], Run]:
    """A quarter of a family's experts left out, once for all tests."""

    @cache
    def run(family: str) -> Run:
        source = grouped if family == "DeepseekV3" else tiny_model(family)
        return pruned(source, tmp_path_factory.mktemp("thinned"), experts={"ratio": 0.25})

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_model_that_never_chooses_them(family: str, thinned: Callable[[str], Run]) -> None:
    run = thinned(family)
    assert all(gone for gone in dropped(run).values())
    torch.testing.assert_close(logits(run.out), masked_logits(run.checkpoint, dropped(run)), rtol=1e-5, atol=1e-5)


def test_a_router_of_groups_loses_as_many_from_each(thinned: Callable[[str], Run]) -> None:
    for numbers in dropped(thinned("DeepseekV3")).values():
        assert sorted(number // 4 for number in numbers) == [0, 1]


@pytest.mark.parametrize("family", ["GptOss", "DeepseekV3"])
def test_none_left_out_is_the_same_model_byte_for_byte(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model(family)
    run = pruned(source, tmp_path, experts={"ratio": 0})
    before, after = tensors(source), tensors(run.out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run.out / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("family", ["Mixtral", "GptOss", "DeepseekV3"])
def test_router_rows_and_experts_are_those_of_the_kept_ones(family: str, thinned: Callable[[str], Run]) -> None:
    run = thinned(family)
    before, after = tensors(run.checkpoint), tensors(run.out)
    for layer, gone in dropped(run).items():
        prefix, router = f"model.layers.{layer}.", ROUTERS[family]
        count = len(before[f"{prefix}{router}.weight"])
        kept = [number for number in range(count) if number not in gone]
        for name in (name for name in before if name.startswith(prefix + router + ".")):
            assert torch.equal(after[name], before[name][kept])
        folder = f"{prefix}{router.rpartition('.')[0]}.experts."
        for name in (name for name in before if name.startswith(folder)):
            number, _, rest = name.removeprefix(folder).partition(".")
            if not number.isdigit():
                assert torch.equal(after[name], before[name][kept])
            elif int(number) in kept:
                assert torch.equal(after[f"{folder}{kept.index(int(number))}.{rest}"], before[name])
    assert sum(tensor.numel() for tensor in after.values()) < sum(tensor.numel() for tensor in before.values())


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "GptOss", "DeepseekV3"])
def test_saliency_is_the_mean_gate_times_norm(family: str, thinned: Callable[[str], Run]) -> None:
    """Against transformers' own model in float64, expert by expert over all tokens."""
    run = thinned(family)
    found: Any = run.results["experts"]
    expected = brute_saliency(run.checkpoint)
    assert found["saliency"].keys() == expected.keys()
    for layer, (scores, tokens) in expected.items():
        assert found["tokens"][layer] == tokens
        assert found["saliency"][layer] == pytest.approx(scores, rel=1e-5)


def test_saliency_does_not_depend_on_how_windows_are_batched(
    thinned: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = thinned("Mixtral").results["experts"]
    monkeypatch.setattr(hidden, "BATCH_tokens", 32)
    again: Any = pruned(thinned("Mixtral").checkpoint, tmp_path, experts={"size": 3}).results["experts"]
    assert found["dropped"] == again["dropped"]
    for layer, scores in found["saliency"].items():
        assert again["saliency"][layer] == pytest.approx(scores, rel=1e-6)


def test_an_expert_that_no_token_reaches_counts_as_nothing(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model("GptOss"), source)
    changed = tensors(source)
    changed["model.layers.1.mlp.router.bias"][2] = -1e4
    save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
    run = pruned(source, tmp_path, experts={"size": 3})
    found: Any = run.results["experts"]
    assert found["saliency"]["1"][2] == found["tokens"]["1"][2] == 0
    assert found["dropped"]["1"] == [2]
    assert any("1 of 8 experts were reached by no calibration token" in said for said in notices(run))
    torch.testing.assert_close(logits(run.out), masked_logits(source, {0: dropped(run)[0]}), rtol=1e-5, atol=1e-5)


def test_random_is_drawn_by_the_seed_and_reads_no_text(tiny_model: MakeModel, tmp_path: Path) -> None:
    def drawn(seed: int, at: str) -> Mapping[int, list[int]]:
        run = run_of(tiny_model("Mixtral"), tiny_model("Mixtral"), tmp_path / at, calibration=TEXT)
        run.seed = seed
        Prune.model_validate({"experts": {"size": 2}, "order": "random"}).apply(run)
        assert run.results["experts"]["saliency"] == {}  # type: ignore[index]
        return dropped(run)

    first = drawn(0, "a")
    assert first == drawn(0, "b")
    assert any(first != drawn(seed, f"c{seed}") for seed in (1, 2, 3))


def test_which_experts_stay() -> None:
    assert most([0.1, 0.4, 0.2, 0.3], 2, 1) == [1, 3]
    assert most([0.1, 0.4, 0.9, 0.8], 2, 2) == [1, 2]
    assert most([0.5, 0.5, 0.5, 0.5], 3, 1) == [0, 1, 2]


@pytest.mark.parametrize(
    ("family", "experts", "said", "remedy"),
    [
        ("Llama", {"ratio": 0.5}, "the model is dense", "`depth`"),
        ("Mixtral", {"size": 1}, "needs 2 experts to choose from, and 1 would be left", "keep at least 2"),
        ("Mixtral", {"size": 5}, "cannot keep 5 of 4", "keep at most 4"),
        ("Mixtral", {"ratio": 0.1}, "10% of 4 experts is less than half of one", "at least 0.25"),
        ("DeepseekV3", {"size": 3}, "from each of the router's 2 groups", "a multiple of 2"),
        ("DeepseekV3", {"size": 2}, "needs 4 experts", "keep at least 4"),
    ],
)
def test_what_cannot_be_is_refused_before_any_text_is_read(
    family: str, experts: dict[str, Any], said: str, remedy: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    run = run_of(source, source, tmp_path / "out", calibration=Calibration(dataset="no-such-set"))
    with pytest.raises(RecipeError, match=said) as caught:
        Prune.model_validate({"experts": experts}).apply(run)
    assert remedy in (caught.value.remedy or "")
    assert caught.value.field == "/chain"


def test_a_configuration_that_does_not_count_its_experts_is_refused(stdlib_model: Path, tmp_path: Path) -> None:
    source = make_model("Mixtral", {"num_local_experts": 8, "num_hidden_layers": 1}, tmp_path / "source", stdlib_model)
    config = json.loads((source / "config.json").read_text())
    del config["num_local_experts"]  # which is 8 where nothing is said
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"config\.json has no num_experts"):
        pruned(source, tmp_path, experts={"size": 2})


def test_tensors_that_no_module_takes_go(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model("Qwen3Moe"), source)
    more = tensors(source) | {"mtp.experts.0.up_proj.weight": torch.zeros(4, 4)}
    save_file(more, source / "model.safetensors", metadata={"format": "pt"})
    run = pruned(source, tmp_path, experts={"size": 2})
    assert not any(name.startswith("mtp.") for name in tensors(run.out))
    assert any("1 tensors that no module" in said for said in notices(run))


@pytest.mark.parametrize(
    "settings", [{"experts": {"ratio": 0.5}, "depth": 1}, {"experts": {}}, {"experts": {"ratio": 0.5, "size": 2}}]
)
def test_what_is_no_recipe(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prune.model_validate(settings)


def test_a_wide_shared_expert_is_no_router(tmp_path: Path, stdlib_model: Path) -> None:
    extras = EXTRAS["Qwen2Moe"] | {"shared_expert_intermediate_size": 4}
    source = make_model("Qwen2Moe", extras, tmp_path / "source", stdlib_model)
    run = pruned(source, tmp_path, experts={"size": 2})
    name = "model.layers.0.mlp.shared_expert.gate_proj.weight"
    assert torch.equal(tensors(run.out)[name], tensors(source)[name])


def pruned(source: Path, folder: Path, **settings: Any) -> Run:
    run = run_of(source, source, folder / "out", calibration=TEXT)
    Prune.model_validate(settings).apply(run)
    return run


def dropped(run: Run) -> dict[int, list[int]]:
    found: Any = run.results["experts"]
    return {int(layer): numbers for layer, numbers in found["dropped"].items()}


def notices(run: Run) -> list[str]:
    found: Any = run.results.get("notices", [])
    return list(found)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager").eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded(folder)(TOKENS_BT, use_cache=False).logits
    return found


def blocks(model: Any) -> dict[int, tuple[torch.nn.Module, torch.nn.Module]]:
    """By the layer's number: router and experts of transformers' own model."""
    found = {}
    for name, module in model.named_modules():
        children = dict(module.named_children())
        router = children.get("gate") or children.get("router")
        if router and "experts" in children:
            found[int(name.split("layers.")[1].split(".")[0])] = (router, children["experts"])
    return found


def masked_logits(source: Path, gone: Mapping[int, list[int]]) -> torch.Tensor:
    """Of transformers' own model, each router computed again with the logits of `gone` at -inf."""
    model = loaded(source)
    for layer, (router, _) in blocks(model).items():
        if layer in gone:
            rows = torch.tensor(gone[layer])
            weight, inner = router.weight, router.forward
            for name in ("bias", "e_score_correction_bias"):
                if getattr(router, name, None) is not None:
                    getattr(router, name).data[rows] = -torch.inf
            if getattr(router, "bias", None) is None:
                router.forward = _with_infinite_rows(inner, weight, rows)
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS_BT, use_cache=False).logits
    return found


def _with_infinite_rows(inner: Any, weight: torch.Tensor, rows: torch.Tensor) -> Any:
    """The router's weight gets rows against each token alone, one after the other: a logit of -1e30 for every one."""

    def forward(hidden_states: torch.Tensor) -> Any:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        outs, before = [], weight.data.clone()
        for x in flat:
            weight.data[rows] = -1e30 * x / (x @ x)
            outs.append(inner(x[None]))
            weight.data.copy_(before)
        return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))

    return forward


def brute_saliency(source: Path) -> dict[str, tuple[list[float], list[int]]]:
    """Float64, one token and one expert after the other, from what transformers' modules are given."""
    model = loaded(source, torch.float64)
    windows_ST = Texts(source, TEXT, ()).calibration_windows(10**6)
    seen: dict[int, tuple[Any, ...]] = {}
    for layer, (_, experts) in blocks(model).items():
        experts.register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args}))
    found: dict[str, tuple[list[float], list[int]]] = {}
    with torch.no_grad():
        model(windows_ST, use_cache=False)
        for layer, (_, experts) in blocks(model).items():
            x_TH, index_TK, gates_TK = seen[layer]
            count = int(experts.num_experts)
            sums, tokens = [0.0] * count, [0] * count
            for number in range(count):
                alone_T1 = torch.full((len(x_TH), 1), number)
                norm_T = experts.forward.__wrapped__(experts, x_TH, alone_T1, torch.ones_like(alone_T1).double())
                norm_T = norm_T.norm(dim=-1)
                for token, chosen_K in enumerate(index_TK.tolist()):
                    if number in chosen_K:
                        gates_K = gates_TK[token] / gates_TK[token].sum()
                        sums[number] += float(gates_K[chosen_K.index(number)] * norm_T[token])
                        tokens[number] += 1
            found[str(layer)] = ([s / max(t, 1) for s, t in zip(sums, tokens, strict=True)], tokens)
    return found
