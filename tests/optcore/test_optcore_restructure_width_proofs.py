"""The acceptance lines of width pruning, on the shipped model and held-out text; they print their figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from safetensors.torch import load_file, save_file

from optcore.evaluate.fidelity_stream import compare
from optcore.links import link_companions
from optcore.references import Calibration
from optcore.techniques import Prune

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=128, sequence_length=128)


def _divergence(model: Path, folder: Path, settings: dict[str, Any]) -> float:
    """Mean KL to the model, nats a token, over 64 held-out windows of 128 tokens."""
    run = run_of(model, model, folder / "out", calibration=CALIBRATION)
    Prune.model_validate(settings).apply(run)
    divergence = compare(run_of(model, run.out, folder / "measured", calibration=CALIBRATION), 64, 128)[0]["result"]
    print(f"{settings!s:<90} KL {divergence.mean_kl:.5f}  top-1 {divergence.agreement:.2%}")
    return divergence.mean_kl


def test_b1_half_of_the_ffn_channels(stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    half = {"ffn": {"ratio": 0.5}}
    chance = _divergence(stdlib_model, tmp_path / "random", {**half, "order": "random"})
    found = {
        how: _divergence(stdlib_model, tmp_path / how, {**half, "importance": how})
        for how in ("magnitude", "activation", "activation_norm")
    }
    assert found["activation"] <= 0.5 * chance
    assert found["activation_norm"] <= found["activation"]


def test_b4_gains_of_a_narrower_hidden_state(stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    quarter = {"hidden": {"ratio": 0.25}}
    plain = _divergence(stdlib_model, tmp_path / "plain", {**quarter, "rescale": False})
    rescaled = _divergence(stdlib_model, tmp_path / "rescaled", quarter)
    chance = _divergence(stdlib_model, tmp_path / "random", {**quarter, "order": "random"})
    print(f"rescaled / plain {rescaled / plain:.3f}")
    assert rescaled < plain
    assert rescaled < chance


def test_b5_biases_that_make_up_for_channels(stdlib_model: Path, tmp_path: Path) -> None:
    """The shipped model with biases of zero: what the mean of the removed channels buys (FLAP), reported."""
    torch.set_num_threads(1)
    biased = tmp_path / "biased"
    biased.mkdir()
    link_companions(stdlib_model, biased)
    config = json.loads((stdlib_model / "config.json").read_text()) | {"mlp_bias": True}
    (biased / "config.json").unlink()
    (biased / "config.json").write_text(json.dumps(config))
    tensors = load_file(stdlib_model / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        tensors[name.replace(".weight", ".bias")] = torch.zeros(len(tensors[name]), dtype=tensors[name].dtype)
    save_file(tensors, biased / "model.safetensors", metadata={"format": "pt"})
    half = {"ffn": {"ratio": 0.5}}
    plain, compensated = (
        _divergence(biased, tmp_path / str(adds), {**half, "compensate": adds}) for adds in (False, True)
    )
    print(f"compensated / plain {compensated / plain:.3f}")
    assert compensated <= 1.02 * plain


def test_every_axis_beats_chance(stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name, settings in {
        "heads": {"heads": {"ratio": 0.5}},
        "width": {"width": 0.25},
        "both": {"width": 0.25, "depth": 1},
    }.items():
        found = _divergence(stdlib_model, tmp_path / name, settings)
        assert found < _divergence(stdlib_model, tmp_path / f"{name}-random", {**settings, "order": "random"})
