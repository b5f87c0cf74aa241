"""Layers left out: which ones, and a checkpoint that is the old model with them skipped."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import ENCODERS, MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from optcore.calibration.propagate import calibration_windows
from optcore.conductor import Emit
from optcore.engine import optimize
from optcore.errors import RecipeError
from optcore.plan import stage_names
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.report import Report
from optcore.restructure.depth import least, least_run
from optcore.restructure.influence import influences
from optcore.restructure.left_out import costs
from optcore.run import Run
from optcore.streaming import hidden
from optcore.streaming.decoder import Decoder
from optcore.techniques import Prune

TEXT = Calibration(dataset="python-stdlib", samples=6, sequence_length=32)
FAMILIES = (
    *("Llama", "Qwen2", "Phi3", "Gemma2", "Mixtral", "GptOss", "NemotronH", "Qwen3Next", "Lfm2", "OPT", "Bloom"),
    *("Bert", "Roberta"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_model_with_the_layer_skipped(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    run = _run(source, tmp_path / "out")
    Prune(depth=1, order="random", ends=True).apply(run)
    (dropped,) = run.results["depth"]["dropped"]  # type: ignore[index]
    model, shorter = _loaded(source, family), _loaded(run.out, family)
    tokens_BT = torch.arange(4, 20)[None]
    returned = (lambda hidden: (hidden, None)) if family == "Bloom" else (lambda hidden: hidden)
    _layers(model)[dropped].forward = lambda hidden_states, *_, **__: returned(hidden_states)
    expected, found = (
        each(tokens_BT, **({} if family in ENCODERS else {"use_cache": False})).logits for each in (model, shorter)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(_layers(shorter)) == len(_layers(model)) - 1


def test_derived_kinds_of_layers_stay_with_their_layers(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Where they are derived from numbers: a short probe would not see that a window is another layer's now."""
    source = tmp_path / "source"
    shutil.copytree(tiny_model("Gemma2"), source)
    config = json.loads((source / "config.json").read_text())
    kinds = config.pop("layer_types")
    (source / "config.json").write_text(json.dumps(config))
    run = _run(source, tmp_path / "out")
    Prune(depth=1, order="random", ends=True).apply(run)
    (dropped,) = run.results["depth"]["dropped"]  # type: ignore[index]
    assert len(set(kinds)) == 2
    written = json.loads((run.out / "config.json").read_text())["layer_types"]
    assert written == [kind for index, kind in enumerate(kinds) if index != dropped]


def test_layers_of_a_classifier_are_not_ranked_by_predicted_tokens(tiny_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    source = tmp_path / "classifier"
    shutil.copytree(tiny_model("Bert"), source)
    (source / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(source)).save_pretrained(source)
    with pytest.raises(RecipeError, match="a classifier predicts none"):
        Prune(depth=1, order="divergence", ends=True).apply(_run(source, tmp_path / "out"))


def test_none_left_out_is_the_same_file(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    Prune(depth=0).apply(run)
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((run.out / "config.json").read_text()) == json.loads((stdlib_model / "config.json").read_text())


def test_influence_is_one_minus_the_mean_cosine_however_windows_are_batched(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    decoder = Decoder(stdlib_model)
    found = influences(run, decoder)
    monkeypatch.setattr(hidden, "BATCH_tokens", 32)
    assert influences(run, decoder) == pytest.approx(found, abs=1e-6)

    from optcore.calibration.text import Texts

    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32)
    windows_ST = Texts(stdlib_model, TEXT, ()).calibration_windows(10**6)
    turned: list[tuple[Any, Any]] = []
    for layer in _layers(model):
        layer.register_forward_hook(
            lambda _, args, out: turned.append((args[0], out[0] if isinstance(out, tuple) else out))
        )
    with torch.no_grad():
        model(windows_ST)
    expected = [1 - torch.cosine_similarity(x.double(), y.double(), dim=-1).mean().item() for x, y in turned]
    assert found == pytest.approx(expected, abs=1e-5)
    two = influences(run, decoder, span=2)
    (x, _), (_, y) = turned[1], turned[2]
    assert len(two) == len(expected) - 1
    assert two[1] == pytest.approx(1 - torch.cosine_similarity(x.double(), y.double(), dim=-1).mean().item(), abs=1e-5)


@torch.no_grad()
def test_what_a_layer_costs_is_the_divergence_without_it(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    decoder = Decoder(stdlib_model)
    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32)
    windows_ST, layers = calibration_windows(run, decoder), list(model.model.layers)
    whole_STV = model(windows_ST, use_cache=False).logits.double().log_softmax(-1)
    for span in (1, 2):
        expected = []
        for start in range(len(layers) - span + 1):
            model.model.layers = torch.nn.ModuleList(layers[:start] + layers[start + span :])
            model.config.num_hidden_layers = len(model.model.layers)
            own_STV = model(windows_ST, use_cache=False).logits.double().log_softmax(-1)
            expected.append((whole_STV.exp() * (whole_STV - own_STV)).sum(-1).mean().item())
        assert costs(run, decoder, span) == pytest.approx(expected, rel=1e-4)
    Prune(depth=1, order="divergence", ends=True).apply(run)
    assert run.results["depth"]["dropped"] == [min(range(6), key=costs(run, decoder).__getitem__)]  # type: ignore[index]


def test_a_layer_that_does_nothing_is_the_first_to_go(stdlib_model: Path, tmp_path: Path) -> None:
    idle = tmp_path / "idle"
    run = _run(stdlib_model, idle)
    Prune(depth=0).apply(run)
    tensors = load_file(idle / "model.safetensors")
    for name in tensors:
        if re.search(r"layers\.1\..*(o_proj|down_proj)", name):
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, idle / "model.safetensors", metadata={"format": "pt"})
    run = _run(idle, tmp_path / "out")
    Prune(depth=1).apply(run)
    assert run.results["depth"]["dropped"] == [1]  # type: ignore[index]
    model, shorter = _loaded(idle, "Llama"), _loaded(run.out, "Llama")
    tokens_BT = torch.arange(4, 20)[None]
    assert torch.equal(shorter(tokens_BT).logits, model(tokens_BT).logits)


def test_which_layers_go() -> None:
    scores = [0.0, 0.3, 0.1, 0.1, 0.4, 0.0]
    assert least(scores, 1, range(1, 5)) == [3]
    assert least(scores, 2, range(6)) == [0, 5]
    assert least_run([9.0, 0.5, 0.2, 0.3, 9.0], 2, range(1, 5)) == [2, 3]
    assert least_run([0.1, 0.5], 4, range(5)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("settings", "most"), [({"depth": 5}, 4), ({"depth": 6, "ends": True}, 5)])
def test_too_many_layers_are_refused(settings: dict[str, Any], most: int, stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"cannot leave out . of 6 layers") as caught:
        Prune.model_validate(settings).apply(run)
    assert caught.value.remedy == f"leave out at most {most}"


def test_a_negative_depth_is_no_recipe() -> None:
    with pytest.raises(ValidationError, match="depth"):
        Prune(depth=-1)


def test_a_layer_that_knows_its_number_is_not_renumbered(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _run(tiny_model("ModernBert"), tmp_path / "out")
    with pytest.raises(RecipeError, match="depends on their numbers"):
        Prune(depth=1, ends=True, order="random").apply(run)


@pytest.mark.usefixtures("stages_here")
def test_a_chain_is_measured_after_each_entry_beside_its_rival(stdlib_model: Path, tmp_path: Path) -> None:
    recipe = recipe_from(
        {
            "model": {"path": str(stdlib_model)},
            "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 32},
            "chain": [
                {"technique": "prune", "depth": 1},
                {
                    "technique": "ptq",
                    "scheme": "int4",
                    "rounding": "nearest",
                    "smoothing": "none",
                    "scale_search": "max",
                },
            ],
            "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 32}],
        }
    )
    seen: list[Any] = []
    emit: Emit = seen.append
    optimize(recipe, tmp_path / "out", tmp_path / "work", emit)
    assert {event.stage for event in seen if event.event == "stage_started"} == set(stage_names(recipe))
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    source, rival, pruned, result = report.steps
    assert (source.what, pruned.stage, result.stage) == ("source", "1-prune", "export")
    assert (rival.stage, rival.rival, rival.what) == ("1-prune-rival", True, "1 layer drawn at random left out")
    assert rival.parameters == pruned.parameters
    assert rival.values["mean_kl"] > 0
    assert not any(one.rival for one in (source, pruned, result))
    assert source.parameters > pruned.parameters == result.parameters
    assert source.weight_bytes > pruned.weight_bytes > result.weight_bytes
    assert 0 < pruned.values["mean_kl"] < result.values["mean_kl"] * 1.05
    assert source.values["perplexity"] < pruned.values["perplexity"]
    assert "mean_kl" not in source.values


def _run(source: Path, out: Path) -> Run:
    return run_of(source, source, out, calibration=TEXT)


def _loaded(folder: Path, family: str) -> Any:
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _layers(model: Any) -> Any:
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    return next(found for found in lists if all(len(list(layer.children())) > 1 for layer in found))
