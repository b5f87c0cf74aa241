"""What thresholds of activations and windows of attention cost, on the shipped model and held-out text; printed."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate import LongContext
from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.techniques import ActivationSparsity, AttentionWindow

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=32, sequence_length=128)


def test_thresholds_by_divergence(stdlib_model: Path, tmp_path: Path) -> None:
    """32 windows of 128 tokens; KL in nats a token to the dense model."""
    torch.set_num_threads(1)
    found: dict[tuple[float, str], float] = {}
    ways = {"static": {"method": "static"}, "uniform": {}, "greedy": {"allocation": "greedy"}}
    for ratio in (0.25, 0.4, 0.5):
        for name, settings in ways.items():
            run = run_of(stdlib_model, stdlib_model, tmp_path / f"{name}-{ratio}", calibration=CALIBRATION)
            ActivationSparsity.model_validate({"ratio": ratio, **settings}).apply(run)
            reached = run.results["activation_sparsity"]["reached"]  # type: ignore[index]
            measuring = run_of(stdlib_model, run.out, tmp_path / f"measured-{len(found)}", calibration=CALIBRATION)
            divergence = compare(measuring, 32, 128)[0]["result"]
            found[ratio, name] = divergence.mean_kl
            said = f"KL {divergence.mean_kl:.5f}  top-1 {divergence.agreement:.2%}"
            print(f"{ratio:.0%} {name:<8} reached {reached:.2%}  {said}", flush=True)
    for ratio in (0.25, 0.4, 0.5):
        assert found[ratio, "greedy"] < found[ratio, "uniform"] < 0.5 * found[ratio, "static"]


def test_windows_by_divergence_at_long_positions(stdlib_model: Path, tmp_path: Path) -> None:
    """8 windows of 1024 tokens; the rival sees as many keys, none of them sinks."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name, settings in {"sinks": {"window": 124, "sinks": 4}, "no sinks": {"window": 128, "sinks": 0}}.items():
        run = run_of(stdlib_model, stdlib_model, tmp_path / name, calibration=CALIBRATION)
        AttentionWindow.model_validate(settings).apply(run)
        measuring = run_of(stdlib_model, run.out, tmp_path / f"measured-{name}", calibration=CALIBRATION)
        rows = LongContext(window=128, samples=8, sequence_length=1024).measure(measuring)
        for row in rows:
            print(f"{name:<9} {row.title:<36} source {row.source}  result {row.result:.5f}", flush=True)
        found |= {f"{name} {row.name}": row.result for row in rows if row.result is not None}
    assert found["sinks mean_kl_far_beyond"] > 0
    assert found["no sinks mean_kl_far_beyond"] > 0
