"""The acceptance line of one-shot sparsity, on the shipped model and held-out text; it prints its figures."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.techniques import Sparsify

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=128, sequence_length=128)


def test_c1_methods_by_divergence(stdlib_model: Path, tmp_path: Path) -> None:
    """64 windows of 128 tokens; KL in nats a token to the dense model."""
    torch.set_num_threads(1)
    found: dict[tuple[str, str], float] = {}
    for name, amount in (("50 %", {"ratio": 0.5}), ("2:4", {"pattern": "2:4"})):
        for method in ("magnitude", "wanda", "ria", "sparsegpt", "alps"):
            run = run_of(stdlib_model, stdlib_model, tmp_path / f"{method}-{len(found)}", calibration=CALIBRATION)
            Sparsify.model_validate({"method": method, **amount}).apply(run)
            measuring = run_of(stdlib_model, run.out, tmp_path / f"measured-{len(found)}", calibration=CALIBRATION)
            divergence = compare(measuring, 64, 128)[0]["result"]
            found[method, name] = divergence.mean_kl
            print(f"{name:<5} {method:<10} KL {divergence.mean_kl:.5f}  top-1 {divergence.agreement:.2%}")
    assert found["sparsegpt", "50 %"] <= 0.75 * found["wanda", "50 %"]
