"""The streaming engine on a CUDA device against the same on the CPU."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import export, run_of, streamed_logits

from optcore.evaluate import Fidelity
from optcore.export import CompressedTensors
from optcore.references import Calibration
from optcore.streaming.decoder import Decoder
from optcore.techniques import Ptq

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CALIBRATION = Calibration(dataset="python-stdlib", samples=4, sequence_length=64)
BF16_KL = 5e-4
"""Nats a token. Computing in bfloat16, tried on a CPU, moved INT8's divergence by 3.4e-4, larger ones by 7% at most."""


def test_logits_are_the_cpus_within_bfloat16(stdlib_model: Path) -> None:
    tokens_BT = torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(4))
    on_gpu = streamed_logits(Decoder(stdlib_model), tokens_BT).float().cpu()
    on_cpu = streamed_logits(Decoder(stdlib_model, torch.device("cpu")), tokens_BT)
    assert ((on_gpu - on_cpu).norm() / on_cpu.norm()).item() < 0.02


@pytest.mark.parametrize("scheme", sorted(CompressedTensors.schemes))
def test_every_format_is_made_and_measured(
    scheme: str, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound for the work of a GPU is what the CPU makes of the same recipe, in float32."""
    on_gpu = _kl(scheme, stdlib_model, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = _kl(scheme, stdlib_model, tmp_path / "cpu")
    print(f"{scheme}: KL {on_gpu:.5f} on the GPU, {on_cpu:.5f} on the CPU")
    assert abs(on_gpu - on_cpu) < 0.2 * on_cpu + BF16_KL


def _kl(scheme: str, model: Path, folder: Path) -> float:
    """Quantized, exported and measured on the device that the engine finds."""
    Ptq(scheme=scheme, kv_cache="fp8").apply(run_of(model, model, folder / "checkpoint", calibration=CALIBRATION))
    export(CompressedTensors(), folder / "checkpoint", folder / "export", model)
    run = run_of(model, folder / "checkpoint", folder / "measured", calibration=CALIBRATION)
    rows = Fidelity(samples=4, sequence_length=128).measure(run)
    kl = next(row.result for row in rows if row.name == "mean_kl")
    assert kl is not None
    return kl
