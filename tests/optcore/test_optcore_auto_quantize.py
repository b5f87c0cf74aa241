"""AutoQuantize: what is tied together, what counts, what is refused, and what ends up in the checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.exporting import described, run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError

from optcore.calibration.budget import Allocation, Candidate, Unit, spend
from optcore.calibration.candidates import choose, score_units
from optcore.errors import RecipeError
from optcore.references import Calibration
from optcore.run import Run
from optcore.techniques import AutoQuantize, Gate

FAST: dict[str, Any] = {"rounding": "nearest", "scale_search": "max", "smoothing": "none", "score_samples": 4}


def run_on(model: Path, folder: Path) -> Run:
    calibration = Calibration(dataset="python-stdlib", samples=4, sequence_length=64)
    return run_of(model, model, folder / "out", calibration=calibration)


def test_the_formats_that_engines_fuse_are_one_unit(tiny_model: MakeModel, tmp_path: Path) -> None:
    technique = AutoQuantize(candidates=("mxfp4", "none"), effective_bits=8, **FAST)
    units = score_units(run_on(tiny_model("Llama"), tmp_path), technique)
    ends = [tuple(name.rpartition(".")[2] for name in unit.modules) for unit in units]
    layer = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    assert ends == layer * 2
    assert units[0].modules[0] == "model.layers.0.self_attn.q_proj"
    assert all(unit.candidates["none"].score == 0 < unit.candidates["mxfp4"].score for unit in units)
    assert sum(unit.candidates["none"].cost for unit in units) == 16 * sum(unit.size for unit in units)


def test_all_experts_of_a_layer_are_one_unit(tiny_model: MakeModel, tmp_path: Path) -> None:
    technique = AutoQuantize(candidates=("mxfp4_w4a16", "none"), effective_bits=8, **FAST)
    units = score_units(run_on(tiny_model("Qwen3Moe"), tmp_path), technique)
    experts = [unit for unit in units if ".experts." in unit.modules[0]]
    assert [len(unit.modules) for unit in experts] == [4 * 3] * 2
    assert all(".experts." in name for unit in experts for name in unit.modules)


def test_active_parameters_count_experts_by_their_share_of_the_tokens(tiny_model: MakeModel, tmp_path: Path) -> None:
    units = {}
    for cost in ("weights", "active"):
        technique = AutoQuantize(candidates=("mxfp4_w4a16", "none"), effective_bits=8, cost=cost, **FAST)
        units[cost] = score_units(run_on(tiny_model("Qwen3Moe"), tmp_path / cost), technique)
    for stored, active in zip(units["weights"], units["active"], strict=True):
        tokens = active.size / stored.size
        assert tokens == (4 * 64 * 2 / 4 if ".experts." in stored.modules[0] else 4 * 64)  # 2 of 4 experts a token
        assert active.candidates["none"].cost == 16 * active.size
        assert active.candidates["mxfp4_w4a16"].cost == 4.25 * active.size


def test_rounding_activations_costs_more_than_rounding_weights_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    technique = AutoQuantize(candidates=("nvfp4", "nvfp4_w4a16", "fp8", "llm_int8"), effective_bits=8, **FAST)
    for unit in score_units(run_on(tiny_model("Llama"), tmp_path), technique):
        scores = {name: candidate.score for name, candidate in unit.candidates.items()}
        assert scores["nvfp4"] > scores["nvfp4_w4a16"] > 2 * scores["fp8"] > 0 < scores["llm_int8"]


def test_what_is_ignored_counts_with_16_bits(tiny_model: MakeModel, tmp_path: Path) -> None:
    technique = AutoQuantize(
        candidates=("mxfp4_w4a16", "mxfp8"), effective_bits=8, ignore=(r"re:.*layers\.0\.mlp\..*",), **FAST
    )
    units = score_units(run_on(tiny_model("Llama"), tmp_path), technique)
    left = [unit for unit in units if set(unit.candidates) == {"none"}]
    assert [len(unit.modules) for unit in left] == [2, 1]
    allocation = spend(units, 10)
    assert all(allocation.assignment[name] is None for unit in left for name in unit.modules)
    with pytest.raises(RecipeError, match="narrowest candidates need"):
        spend(units, 5)


def test_a_format_whose_groups_do_not_divide_is_not_offered(tiny_model: MakeModel, tmp_path: Path) -> None:
    technique = AutoQuantize(candidates=("int4", "none"), effective_bits=16, **FAST)  # groups of 128
    units = score_units(run_on(tiny_model("DeepseekV3"), tmp_path / "a"), technique)
    narrow = [unit for unit in units if any("kv_b_proj" in name for name in unit.modules)]  # 64 inputs
    assert narrow
    assert all(set(unit.candidates) == {"none"} for unit in narrow)
    only = AutoQuantize(candidates=("int4", "int4_asym"), effective_bits=16, **FAST)
    with pytest.raises(RecipeError, match="no candidate fits"):
        score_units(run_on(tiny_model("DeepseekV3"), tmp_path / "b"), only)


def test_the_checkpoint_holds_what_was_chosen(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = run_on(tiny_model("Llama"), tmp_path)
    AutoQuantize(candidates=("mxfp4_w4a16", "int8_w8a16", "none"), effective_bits=6, **FAST).apply(run)
    allocation = Allocation.model_validate(run.results["allocation"])
    assert 5 < allocation.bits <= 6
    assert allocation.predicted_kl == pytest.approx(sum(choice.score for choice in allocation.choices))
    description = described(run.out)
    chosen = {name: linear.scheme for name, linear in description.linears.items()}
    assert chosen == {name: scheme for name, scheme in allocation.assignment.items() if scheme}
    assert len(set(chosen.values())) == 2
    assert set(allocation.assignment) - set(chosen) <= set(description.ignored)


def test_a_killed_process_leaves_its_decision(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = run_on(tiny_model("Llama"), tmp_path)
    technique = AutoQuantize(candidates=("mxfp4_w4a16", "none"), effective_bits=9, **FAST)
    decided = choose(run, technique)
    run.checkpoint = tmp_path / "nowhere"  # reading the model again would fail
    assert choose(run, technique) == decided


def test_an_impossible_budget_names_the_least_possible() -> None:
    unit = Unit(modules=("a",), size=100, candidates={"mxfp4": Candidate(cost=425, score=1.0)})
    with pytest.raises(RecipeError, match=r"effective_bits is 4, .* 4\.250") as caught:
        spend([unit], 4)
    assert "4.2" in caught.value.remedy
    assert spend([unit], 4.25).bits == 4.25


def test_bad_settings_are_refused() -> None:
    for wrong in ({"candidates": ("nvfp4",)}, {"candidates": ("nvfp4", "nvfp4")}, {"effective_bits": 0}, {"cost": "x"}):
        with pytest.raises(ValidationError):
            AutoQuantize.model_validate({"effective_bits": 5, **wrong})


def test_a_fallback_raises_the_budget() -> None:
    gate = Gate(metric="kl", max=0.01, on_fail="fallback")
    technique = AutoQuantize(effective_bits=4.8, gate=gate, fallback=({"effective_bits": 6}, {"effective_bits": 8}))
    first, second = technique.alternatives
    assert (first.effective_bits, second.effective_bits) == (6, 8)
    assert first.gate == gate
    assert second.gate is not None
    assert second.gate.on_fail == "stop"


def test_the_pass_gets_the_same_settings() -> None:
    technique = AutoQuantize(effective_bits=5, rounding="nearest", ignore=("a",), kv_cache="fp8")
    settings = technique.quantizing
    assert (settings.rounding, settings.ignore, settings.kv_cache) == ("nearest", ("a",), "fp8")
    assert technique.schemes == ("nvfp4", "fp8_dynamic")
