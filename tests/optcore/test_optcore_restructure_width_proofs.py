"""The acceptance lines of width pruning, on the shipped model and held-out text; they print their figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
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


def test_every_axis_beats_chance(stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name, settings in {
        "heads": {"heads": {"ratio": 0.5}},
        "width": {"width": 0.25},
        "both": {"width": 0.25, "depth": 1},
    }.items():
        found = _divergence(stdlib_model, tmp_path / name, settings)
        assert found < _divergence(stdlib_model, tmp_path / f"{name}-random", {**settings, "order": "random"})
