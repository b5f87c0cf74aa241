"""Thresholds of activations: quantiles, levels, what is reached, and that they stay with the weights they are of."""

from itertools import product
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError

from optcore.algorithms.magnitudes import Magnitudes
from optcore.calibration.propagate import calibration_windows
from optcore.conditional import load_conditional
from optcore.errors import RecipeError
from optcore.evaluate.fidelity_stream import compare
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.restructure.activation_sparsity import greedy_levels
from optcore.streaming.decoder import Decoder
from optcore.techniques import ActivationSparsity


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_quantiles_are_those_of_all_values_to_a_part_of_a_bin(scale: float) -> None:
    x = torch.randn(5, 40_000, generator=torch.Generator().manual_seed(0)) * scale
    seen = Magnitudes()
    for part in x.split(1):
        seen.add(part)
    exact = x.abs().flatten().double().sort().values
    for share in (0.01, 0.25, 0.5, 0.9):
        assert seen.quantile(share) == pytest.approx(exact[int(share * 200_000)].item(), rel=4e-3)
        assert (x.abs() <= seen.quantile(share)).double().mean().item() == pytest.approx(share, abs=1e-3)
    assert seen.quantile(0) == 0


def test_zeros_need_no_threshold() -> None:
    seen = Magnitudes()
    seen.add(torch.tensor([0.0, 0.0, 0.0, 1.0, -2.0]))
    assert seen.quantile(0.5) == 0
    assert 1 <= seen.quantile(0.8) < 1.01


def test_levels_are_the_best_that_brute_force_finds_and_meet_the_mean() -> None:
    costs, weights = (1.0, 4.0, 0.5), (2, 1, 4)

    def error(levels: object) -> float:
        return sum(cost * level**2 for cost, level in zip(costs, levels, strict=True))  # type: ignore[call-overload]

    found = greedy_levels(error, weights, 0.4, 0.01)
    assert sum(level * weight for level, weight in zip(found, weights, strict=True)) == pytest.approx(0.4 * 7)
    grid = [step * 0.02 for step in range(48)]
    tried = product(grid, grid, grid)
    meeting = [one for one in tried if abs(sum(a * w for a, w in zip(one, weights, strict=True)) - 2.8) < 0.011]
    assert error(found) <= min(map(error, meeting)) * 1.02


def test_no_ratio_changes_no_bit(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    ActivationSparsity(ratio=0).apply(run)
    result = compare(run_of(stdlib_model, run.out, tmp_path / "measured"), 2, 64)[0]["result"]
    assert (result.kl, result.agreement) == (0.0, 1.0)
    assert ActivationSparsity(ratio=0).rival is None


@pytest.mark.parametrize("method", ["threshold", "static"])
def test_inputs_are_as_sparse_as_asked_and_as_said(method: str, stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    ActivationSparsity.model_validate({"ratio": 0.4, "method": method}).apply(run)
    inputs = load_conditional(run.out).inputs  # type: ignore[union-attr]
    assert len(inputs.tensors) == 42  # type: ignore[union-attr]
    decoder, name = Decoder(run.out), "model.layers.1.mlp.down_proj"
    zeros: list[float] = []
    state = decoder.embed(calibration_windows(run, decoder))
    for index in range(2):
        with decoder.layer(index) as layer:
            layer.get_submodule("mlp.down_proj").register_forward_pre_hook(
                lambda _, x: zeros.append((x[0] == 0).double().mean().item())
            )
            state = decoder.forward(index, layer, state)
    assert zeros[1] == pytest.approx(inputs.tensors[name].reached, abs=1e-6)  # type: ignore[union-attr]
    assert zeros[1] == pytest.approx(0.4, abs=0.06)
    assert run.results["activation_sparsity"]["reached"] == pytest.approx(0.4, abs=0.02)  # type: ignore[index]
    assert "accelerated by: nothing" in run.results["notices"][-1]  # type: ignore[index]


def test_greedy_levels_reach_the_same_mean_with_less_error(stdlib_model: Path, tmp_path: Path) -> None:
    found = {}
    for allocation in ("uniform", "greedy"):
        run = run_of(stdlib_model, stdlib_model, tmp_path / allocation)
        technique = ActivationSparsity.model_validate({"ratio": 0.4, "allocation": allocation, "step": 0.4})
        technique.apply(run)
        assert run.results["activation_sparsity"]["reached"] == pytest.approx(0.4, abs=0.02)  # type: ignore[index]
        found[allocation] = compare(run_of(stdlib_model, run.out, tmp_path / f"{allocation}-m"), 2, 64)[0]["result"]
    assert found["greedy"].kl < found["uniform"].kl


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV3", "NemotronH"])
def test_experts_and_latent_attention_have_thresholds_too(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model(family)
    run = run_of(source, source, tmp_path / "out")
    ActivationSparsity(ratio=0.3).apply(run)
    inputs = load_conditional(run.out).inputs  # type: ignore[union-attr]
    experts = [one for name, one in inputs.tensors.items() if ".experts." in name]  # type: ignore[union-attr]
    assert experts
    assert all(one.threshold > 0 or one.reached >= one.ratio for one in experts)  # half of what a ReLU gives is zero
    assert any(one.ratio for one in experts)
    assert 0 < compare(run_of(source, run.out, tmp_path / "m"), 1, 64)[0]["result"].mean_kl < 1


def test_an_ignored_name_that_is_nowhere_is_refused(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    with pytest.raises(RecipeError, match="matches no linear layer"):
        ActivationSparsity(ignore=("model.layers.9.mlp.up_proj",)).apply(run)
    with pytest.raises(RecipeError, match="no linear layer is left"):
        ActivationSparsity(ignore=("re:.*",)).apply(run)
    with pytest.raises(ValidationError, match="same share"):
        ActivationSparsity(method="static", allocation="greedy")


def test_thresholds_come_after_what_changes_the_model() -> None:
    def checked(*chain: dict[str, object]) -> None:
        check(recipe_from({"model": {"id": "a/b"}, "chain": list(chain), "target": {"format": "dense"}}))

    sparse, window = {"technique": "activation_sparsity"}, {"technique": "attention_window", "window": 64}
    checked({"technique": "sparsify"}, window, sparse)
    for later in (window, {"technique": "prune", "depth": 1}, sparse):
        with pytest.raises(RecipeError, match="the thresholds of its inputs would be lost"):
            checked(sparse, later)
